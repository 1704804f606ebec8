"""What was measured of a reader: figures with intervals, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import BadInput
from ..intervals import bootstrap, shares

Interval = tuple[float, float, float]
SIDES = ("safe", "unsafe")


@dataclass(frozen=True)
class Samples:
    """What figures of one side are means of.

    Attributes:
        values: Figure -> values of 0 to 1, [n], one an image or a prompt.
        concepts: The concepts of each, [n]; empty names none.
    """

    values: dict[str, torch.Tensor]
    concepts: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class ReaderResult:
    """Figures of one reader as one model feeds it.

    Attributes:
        counts: Side -> how many images or prompts.
        figures: Name -> (mean, low, high), fractions with 95 % intervals of `intervals.shares`.
        by_concept: Concept -> the same over its own; empty where nothing names a concept.
        zero_shot: Empty: no data set is measured here.
        seconds: An image or a caption, of making them; None where they were made by an earlier run.
        samples: Side -> what the figures are means of; kept in memory only.
    """

    counts: dict[str, int]
    figures: dict[str, Interval]
    by_concept: dict[str, dict[str, Interval]]
    seconds: float | None = None
    zero_shot: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: dict[str, Samples] = field(default_factory=dict, repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: what is the same in every run."""
        return {name: getattr(self, name) for name in ("counts", "figures", "by_concept")}


def summarise(sides: Mapping[str, Samples], seed: int = 0, seconds: float | None = None) -> ReaderResult:
    """Figures of the samples of each side.

    Args:
        sides: Side -> samples; figures have different names on different sides.
        seed: For the bootstrap.
        seconds: As in `ReaderResult`.
    """
    figures: dict[str, Interval] = {}
    by_concept: dict[str, dict[str, Interval]] = {}
    for samples in sides.values():
        figures |= shares(samples.values, seed) if samples.values else {}
        for concept, rows in _rows(samples.concepts).items():
            own = shares({name: values[rows] for name, values in samples.values.items()}, seed)
            by_concept.setdefault(concept, {}).update(own)
    counts = {side: _count(samples) for side, samples in sides.items()}
    return ReaderResult(counts, figures, dict(sorted(by_concept.items())), seconds, samples={**sides})


def _count(samples: Samples) -> int:
    return len(next(iter(samples.values.values()), ()))


def _rows(concepts: Sequence[Sequence[str]]) -> dict[str, list[int]]:
    """Concept -> the rows that name it."""
    found: dict[str, list[int]] = {}
    for row, names in enumerate(concepts):
        for name in names:
            found.setdefault(name, []).append(row)
    return found


def differences(result: ReaderResult, baseline: ReaderResult, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Paired differences to a baseline, image by image or prompt by prompt.

    Args:
        result, baseline: Of the same images or prompts.
        seed: For the bootstrap.

    Returns:
        Figure -> ``difference``: (mean, low, high), result − baseline, with a paired bootstrap 95 % interval;
        ``gained`` and ``lost``: for how many the value rose and fell. Only of figures that both have.

    Raises:
        BadInput: They are of different images or prompts.
    """
    if result.counts != baseline.counts:
        raise BadInput(f"results of {baseline.counts} and {result.counts} cannot be paired")
    found: dict[str, dict[str, Any]] = {}
    for side, samples in result.samples.items():
        before = baseline.samples[side].values
        steps = {n: now.double() - before[n].double() for n, now in samples.values.items() if n in before}
        for name, interval in (bootstrap(steps, seed) if steps else {}).items():
            counts = {"gained": int((steps[name] > 0).sum()), "lost": int((steps[name] < 0).sum())}
            found[name] = {"difference": interval, **counts}
    return found
