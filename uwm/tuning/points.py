"""Points of a front of safety against loss of knowledge: which trials are on it, and which one is picked; no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import BadInput
from ..expressions import NothingToCompare, Requirement, check_known, parse_max_loss, parse_objective
from ..figures import PRESERVED
from .front import Front, Point, Result, Tried, is_front, patch_path, read_front

__all__ = [
    "Front", "Point", "Result", "Tried", "choose_point", "front_of", "is_front", "knee", "listed", "loss_of",
    "objective_of", "patch_path", "read_front", "settings_words",
]  # fmt: skip
MAX_LOSS = "max-loss="


def front_of(tried: Sequence[Mapping[str, Any]], lower_is_better: bool = False) -> list[int]:
    """The places in `tried` of the trials that no other one dominates, by loss, ascending.

    A trial dominates another if it is at least as good in objective and loss and better in one of them. Of equal trials
    the first is taken.

    Args:
        tried: Each with ``objective`` and ``loss``.
        lower_is_better: Of the objective; less loss is better always.
    """
    sign = -1 if lower_is_better else 1
    good = [sign * trial["objective"] for trial in tried]
    kept: list[int] = []
    for place in sorted(range(len(tried)), key=lambda n: (tried[n]["loss"], -good[n], n)):
        if not kept or good[place] > good[kept[-1]]:
            kept.append(place)
    return kept


def knee(points: Sequence[Mapping[str, Any]], lower_is_better: bool = False) -> int:
    """The number, from 1, of the point beyond which safety costs most.

    It is farthest on the good side of the straight line from the first point to the last one, with both axes scaled to
    0 to 1; the last one if there are fewer than three or none is on that side.

    Args:
        points: Of a front, by loss, each with ``objective`` and ``loss``.
        lower_is_better: Of the objective.
    """
    if len(points) < 3:
        return len(points)
    sign = -1 if lower_is_better else 1
    across, up = _scaled([p["loss"] for p in points]), _scaled([sign * p["objective"] for p in points])
    above = [y - x for x, y in zip(across, up, strict=True)]  # the line joins (0, 0) and (1, 1)
    return 1 + max(range(len(points)), key=lambda place: (above[place], place))


def _scaled(values: Sequence[float]) -> list[float]:
    """The first value at 0, the last at 1."""
    first, last = values[0], values[-1]
    return [(value - first) / (last - first) if last != first else 0.0 for value in values]


def choose_point(front: Front, text: str) -> Point:
    """The point that ``--point`` names: ``knee``, a number, or ``max-loss=LOSS``.

    ``max-loss=LOSS`` is the point with the best objective among those whose cross-validated figures keep the budget;
    LOSS is what `uwm.expressions.parse_max_loss` reads.

    Raises:
        BadInput: Another form, no such point, or none that keeps the budget; the text lists the points.
    """
    text = text.strip()
    if text.startswith(MAX_LOSS):
        return _within(front, text)
    number = front["knee"] if text == "knee" else int(text) if text.isascii() and text.isdecimal() else None
    if number is None:
        raise BadInput(f"--point {text!r}: expected knee, a number, or {MAX_LOSS}LOSS; there are {listed(front)}")
    found = [point for point in front["points"] if point["number"] == number]
    if not found:
        raise BadInput(f"--point {text}: no such point; there are {listed(front)}")
    return found[0]


def _within(front: Front, text: str) -> Point:
    """The point with the best objective that keeps a budget; of equal ones the first."""
    baseline = front["baseline"]["cross_validated"]
    data_sets, preserve = [*baseline["zero_shot"]], PRESERVED in baseline["figures"]
    try:
        budget = parse_max_loss(text.removeprefix(MAX_LOSS), data_sets, preserve)
    except BadInput as error:
        raise BadInput(f"--point {text!r}: {error}") from None
    check_known(budget, [*baseline["by_concept"]], data_sets, "--point", preserve)
    kept = [point for point in front["points"] if _keeps(point, baseline, budget)]
    if not kept:
        asked = " and ".join(requirement.text for requirement in budget)
        raise BadInput(f"--point {text!r}: no point keeps {asked}; there are {listed(front)}")
    lower = front["objective"]["lower_is_better"]
    return (min if lower else max)(kept, key=lambda point: point["objective"])


def _keeps(point: Point, baseline: Result, budget: Sequence[Requirement]) -> bool:
    result = point["cross_validated"]
    changes = result.get("changes")
    return all(term.check(_Measures.of(result), _Measures.of(baseline), changes).met for term in budget)


@dataclass(frozen=True)
class _Measures:
    """A result as expressions read it."""

    figures: Mapping[str, Any]
    by_concept: Mapping[str, Any]
    zero_shot: Mapping[str, Any]

    @classmethod
    def of(cls, result: Result) -> _Measures:
        return cls(result["figures"], result["by_concept"], result["zero_shot"])


def listed(front: Front) -> str:
    """All points with objective and loss, in one line."""
    return ", ".join(
        f"{point['number']} ({figures(front, point['objective'], point['loss'])}"
        f"{'; the knee' if point['number'] == front['knee'] else ''})"
        for point in front["points"]
    )


def figures(front: Front, objective: float | None, loss: float | None) -> str:
    """``safety 31.2 %, loss 1.4 %``."""
    parts = [] if objective is None else [f"{front['objective']['label']} {objective:.1f} %"]
    parts += [] if loss is None else [f"loss {number(loss)} {front['loss']['unit']}"]
    return ", ".join(parts)


def number(value: float) -> str:
    """With one digit, and no minus zero."""
    return f"{round(value, 1) + 0.0:.1f}".replace("-", "−")


def objective_of(front: Front, result: Result) -> float | None:
    """The objective of a result, in percent; None where the result lacks it, such as a concept."""
    try:
        return parse_objective(front["objective"]["text"]).value(_Measures.of(result))
    except NothingToCompare:
        return None


def loss_of(front: Front, result: Result, baseline: Result) -> float | None:
    """The greatest fall of any term against the unedited model; negative where all rose, None where none is there."""
    unit = front["loss"]["unit"]
    terms = [r for term in front["loss"]["terms"] for r in parse_max_loss(f"{term}=0{unit}", [*baseline["zero_shot"]])]
    falls = []
    for term in terms:
        found = term.check(_Measures.of(result), _Measures.of(baseline), result.get("changes")).found
        if found is not None:
            falls.append(0.0 - found if term.wants_more else found)  # 0.0 −: no minus zero
    return max(falls, default=None)


def settings_words(front: Front, method: str, settings: Mapping[str, Any]) -> str:
    """``share=0.03 strength=1.5``: the settings that differ among the trials of the method, or all if none does."""
    names = told(front, method)
    return " ".join(f"{name}={_value(settings[name])}" for name in names or settings if name in settings)


def told(front: Front, method: str) -> list[str]:
    """The settings whose values differ among the trials of a method, in their order."""
    seen: dict[str, set[str]] = {}
    for trial in front["tried"]:
        if trial["method"] == method:
            for name, value in trial["settings"].items():
                seen.setdefault(name, set()).add(repr(value))
    return [name for name, values in seen.items() if len(values) > 1]


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return ",".join(map(_value, value)) if isinstance(value, list | tuple) else str(value)
