"""A requirement: a condition on an expression, and its verdict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .expression import BOUNDS, ZERO_SHOT_FIGURES, Expression, Measured, NothingToCompare

ROUNDING = 1e-9  # so that 47.5 % against 50 % is a change of exactly -5 %
Changes = Mapping[str, Mapping[str, Any]]  # what `uwm.evaluation.differences` returns


@dataclass(frozen=True)
class Verdict:
    """The outcome of one requirement. Percent, percent of change, or points, as the requirement has them.

    Attributes:
        requirement: Its text.
        found: The number that was compared; None if there is none.
        met: Whether it holds.
        note: The worst concept or data set, or why nothing could be compared.
        margin: How far `found` lies on the good side of the bound; negative: it was missed by so much; None without
            a number.
        interval: The paired 95 % interval of a change, (low, high), where it was computed: of a figure of the whole
            set, or of one data set.
    """

    requirement: str
    found: float | None
    met: bool
    note: str = ""
    margin: float | None = None
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        return ", ".join(part for part in (self._told(), self.note) if part)

    def _told(self) -> str:
        """The number in words, so that no change reads as a value."""
        if self.found is None:
            return ""
        change, end = re.search(r"\d\s*(pt|%)\s*$", self.requirement), re.match(r"\s*\w+\.(low|high)", self.requirement)
        if not change:
            return f"found {self.found:.1f} %"
        if end:
            return f"{end[1]} end of the change {self.found:+.1f} {change[1]}"
        return f"{'relative change' if change[1] == '%' else 'changed by'} {self.found:+.1f} {change[1]}"


@dataclass(frozen=True)
class Requirement:
    """A condition on one expression.

    Attributes:
        text: As `parse_requirements` reads it.
        expression: What is compared.
        sign: ``>=``, ``<=``, ``>`` or ``<``.
        value: In percent; with the unit ``%`` the change in percent of the baseline's value, with ``pt`` in points.
        unit: Empty, ``%`` or ``pt``.
    """

    text: str
    expression: Expression
    sign: str
    value: float
    unit: str

    @property
    def wants_more(self) -> bool:
        """Whether the bound is a least one."""
        return self.sign.startswith(">")

    def check(self, result: Measured, baseline: Measured | None = None, changes: Changes | None = None) -> Verdict:
        """Compare with a result; a requirement that cannot be compared is not met, and the verdict gives the reason.

        Args:
            result: From `uwm.evaluate`.
            baseline: Of the same pairs, for changes.
            changes: `uwm.evaluation.differences` of the two, for the intervals of changes.
        """
        changes = changes or {}
        try:
            if self.unit and self.expression.bound != "mean":
                bound = self._bound_of_change(changes)
                return self._verdict(bound, _unchanged(changes[self.expression.figure]))
            numbers = self._numbers(result, baseline)
        except NothingToCompare as reason:
            return Verdict(self.text, None, False, str(reason))
        worst = (min if self.wants_more else max)(numbers, key=lambda name: numbers[name])
        kind = "concept" if self.expression.concept else "data set"
        interval = self._interval(result, baseline, changes, worst) if self.unit and baseline is not None else None
        return self._verdict(numbers[worst], f"worst {kind} {worst}" if worst else "", interval)

    def _verdict(self, found: float, note: str = "", interval: tuple[float, float] | None = None) -> Verdict:
        margin = found - self.value if self.wants_more else self.value - found
        met = margin >= -ROUNDING if self.sign.endswith("=") else margin > ROUNDING
        return Verdict(self.text, found, met, note, max(margin, 0.0) if met else min(margin, -ROUNDING), interval)

    def _bound_of_change(self, changes: Changes) -> float:
        figure, bound = self.expression.figure, self.expression.bound
        if figure not in changes:
            raise NothingToCompare(f"there is no paired interval of the change of {figure}")
        return 100 * changes[figure]["difference"][BOUNDS.index(bound)]

    def _numbers(self, result: Measured, baseline: Measured | None) -> dict[str, float]:
        """`Expression.values`, or their changes."""
        now = self.expression.values(result)
        if not self.unit:
            return now
        if baseline is None:
            raise NothingToCompare("there is no baseline to compare with")
        before, figure, changes = self.expression.values(baseline), self.expression.figure, {}
        for name, value in now.items():
            place = name or self.expression.concept or self.expression.data_set
            of = f" of {place}" if place else ""
            if name not in before:
                raise NothingToCompare(f"the baseline has no {figure}{of}")
            if self.unit == "%" and before[name] == 0:
                raise NothingToCompare(f"the baseline's {figure}{of} is 0, so no change in % exists; use pt")
            changes[name] = value - before[name] if self.unit == "pt" else 100 * (value / before[name] - 1)
        return changes

    def _interval(
        self, result: Measured, baseline: Measured, changes: Changes, worst: str
    ) -> tuple[float, float] | None:
        """Of the change of the whole set, or of the one data set that it is of; None where nobody computed it."""
        expression, key = self.expression, self.expression.figure
        if expression.concept:
            return None
        if expression.figure in ZERO_SHOT_FIGURES:
            names = [worst] if worst else expression.data_sets(result)
            if len(names) > 1:
                return None
            key = f"{expression.on(result, names[0])}:{names[0]}"
        if key not in changes:
            return None
        scale = 100 if self.unit == "pt" else 100 * 100 / expression.values(baseline)[worst]
        _, low, high = changes[key]["difference"]
        return scale * low, scale * high


def _unchanged(change: Mapping[str, Any]) -> str:
    """Said of an interval that rests on no query at all; empty where queries are known to have changed."""
    return "" if change.get("gained", 1) or change.get("lost", 1) else "no query changed"
