"""An expression: a number of a result, in percent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import BadInput
from ..figures import OF_DATA_SETS, ZERO_SHOT, accuracy_of, lower_is_better

BOUNDS = ("mean", "low", "high")
ZERO_SHOT_FIGURES = (ZERO_SHOT, *OF_DATA_SETS)
Interval = tuple[float, float, float]


class Measured(Protocol):
    """What an expression reads of an `uwm.evaluation.EvalResult`: figures are fractions, (mean, low, high)."""

    @property
    def figures(self) -> Mapping[str, Interval]: ...

    @property
    def by_concept(self) -> Mapping[str, Mapping[str, Interval]]: ...

    @property
    def zero_shot(self) -> Mapping[str, Mapping[str, Any]]: ...


class NothingToCompare(BadInput):
    """The number that an expression names was not measured; the text gives the reason."""


@dataclass(frozen=True)
class Expression:
    """A number of a result.

    Attributes:
        text: As it was written; of a short name such as ``R1``, with the figure that it stands for.
        figure: A name of `figures.PAIRED` or `figures.OF_DATA_SETS`, ``zero_shot`` or ``preserved``. On a data set
            ``zero_shot`` is the figure that `figures.accuracy_of` gives.
        bound: ``mean``, or ``low`` or ``high`` of its 95 % interval.
        concept: One concept, ``*`` for every one, or empty for the whole set.
        data_set: One zero-shot data set, ``*`` for every one, or empty for the mean over all.
    """

    text: str
    figure: str
    bound: str = "mean"
    concept: str = ""
    data_set: str = ""

    @property
    def lower_is_better(self) -> bool:
        """Whether less of it is better."""
        return lower_is_better(self.figure)

    @property
    def of_pairs(self) -> bool:
        """Whether it is a figure of pairs or of what is preserved, and not of data sets."""
        return self.figure not in ZERO_SHOT_FIGURES

    def value(self, result: Measured) -> float:
        """The number in percent; with ``*`` that of the worst concept or data set. Raises NothingToCompare."""
        return (max if self.lower_is_better else min)(self.values(result).values())

    def values(self, result: Measured) -> dict[str, float]:
        """With ``*``, concept or data set -> percent; else the one number under an empty name.

        Raises:
            NothingToCompare: It was not measured.
        """
        if self.concept == "*":
            if not result.by_concept:
                raise NothingToCompare("the pairs name no concepts")
            return {concept: self._of_pairs(result, concept) for concept in result.by_concept}
        if self.of_pairs:
            return {"": self._of_pairs(result, self.concept)}
        found = {name: 100 * result.zero_shot[name][self.on(result, name)] for name in self.data_sets(result)}
        return found if self.data_set == "*" else {"": sum(found.values()) / len(found)}

    def data_sets(self, result: Measured) -> list[str]:
        """The data sets that it is read from. Raises NothingToCompare when there are none."""
        asked = [name for name in result.zero_shot if self.data_set in ("", "*", name)]
        if found := [name for name in asked if self.on(result, name) in result.zero_shot[name]]:
            return found
        named = f" {self.data_set}" if self.data_set.strip("*") else ""
        raise NothingToCompare(f"no data set{named} has a {self.figure}")

    def on(self, result: Measured, data_set: str) -> str:
        """The figure that is read from a data set."""
        return accuracy_of(result.zero_shot[data_set]) if self.figure == ZERO_SHOT else self.figure

    def _of_pairs(self, result: Measured, concept: str) -> float:
        figures = result.by_concept.get(concept, {}) if concept else result.figures
        if self.figure not in figures:
            raise NothingToCompare(f"there is no {self.figure}" + (f" of {concept}" if concept else ""))
        return 100 * figures[self.figure][BOUNDS.index(self.bound)]
