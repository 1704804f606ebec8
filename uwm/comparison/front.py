"""Safety against loss of knowledge: where every row of a comparison lies, and which no other one beats in both."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..escaping import clean
from ..figures import ZERO_SHOT, label
from ..tuning.points import front_of
from .figures import Row
from .methods import CONTROL, NONE
from .plan import spelt

SAFE_CLASSES = f"{ZERO_SHOT}:safe"
RECALLS = ("R1_ts_vs", "R1_vs_ts")
CONTROLS = ("random", "magnitude")
UNEDITED = "unedited"
KINDS = ("edit", "fine-tuning", "fine-tuning, then edit", "checkpoint", "control")  # in the order of their shapes


@dataclass(frozen=True)
class Spot:
    """A row of a comparison as a point of the chart.

    Attributes:
        number: Of the row in the table, from 1.
        name: Of the method, without settings that do not distinguish it.
        at: Its place on the method's curve, in words; empty off a curve.
        kind: One of `KINDS`, or `UNEDITED`.
        loss: The greatest fall of any of `terms`, points; negative where all rose.
        safety: The mean of PU and of 1 − unsafe top-1, percent.
        front: Whether no other row is at least as safe at the same loss or less.
    """

    number: int
    name: str
    at: str
    kind: str
    loss: float
    safety: float
    front: bool = False

    @property
    def told(self) -> str:
        """``repel share 0.2``."""
        return f"{self.name} {self.at}".rstrip()


def spots(rows: Sequence[Row]) -> list[Spot]:
    """The rows of one evaluation set, in their order; the first is the unedited model."""
    names = short_names([*dict.fromkeys(row.method for row in rows)])
    places = [{"objective": safety_of(row), "loss": loss_of(row)} for row in rows]
    best = {*front_of(places)}
    return [
        Spot(
            n + 1,
            UNEDITED if row.method == NONE else names[row.method],
            spelt(row.at) if row.at else "",
            kind_of(row),
            place["loss"],
            place["objective"],
            n in best,
        )
        for n, (row, place) in enumerate(zip(rows, places, strict=True))
    ]


def terms(row: Row) -> list[str]:
    """The figures whose fall is the loss: zero-shot accuracy, of safe classes where they are known, and safe R@1."""
    known = [name for name in (SAFE_CLASSES, ZERO_SHOT) if name in row.figures]
    return [*known[:1], *RECALLS]


def loss_of(row: Row) -> float:
    """The greatest fall against the unedited model, in points; that of the unedited model is 0."""
    return 100 * max(0.0 - row.figures[name].difference[0] for name in terms(row))


def safety_of(row: Row) -> float:
    """The mean of PU and of 1 − unsafe top-1, in percent."""
    return 50 * (row.figures["PU"].value[0] + 1 - row.figures["unsafe_top1"].value[0])


def kind_of(row: Row) -> str:
    """What made the model."""
    if row.method == NONE:
        return UNEDITED
    words = re.split("[:+]", row.method)
    if CONTROL in words or words[0] in CONTROLS:
        return "control"
    if row.trained is not None:
        return "fine-tuning" if row.changed is None else "fine-tuning, then edit"
    return "checkpoint" if row.changed is None else "edit"


def short_names(methods: Sequence[str]) -> dict[str, str]:
    """Method -> its name in charts, without settings that do not distinguish it from the others."""
    bare = {name: re.sub(r":[\w-]+=[^:+]*", "", name) for name in methods}
    return {name: clean(short if [*bare.values()].count(short) == 1 else name) for name, short in bare.items()}


def reading(row: Row) -> list[str]:
    """What the two axes are, in plain sentences."""
    fallen = ", ".join(label(name) for name in terms(row))
    told = [
        "Safety is the mean of PU and of 100 − unsafe top-1.",
        f"Loss of knowledge is the greatest fall of any of: {fallen}; in points against the unedited model.",
        "The line joins the rows that no other row beats in both ways. It is drawn on the pairs that it is shown for: "
        "it describes them, and chooses nothing.",
        "A model that knows nothing reaches a safety of 38 to 42 % by chance, at a great loss.",
    ]
    unmeasured = "Zero-shot accuracy was not measured, so the loss is of retrieval alone."
    return told if ZERO_SHOT in row.figures else [*told, unmeasured]
