"""From results to rows: means over seeds, intervals over queries, spread over seeds, differences to the unedited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..figures import ZERO_SHOT
from ..intervals import bootstrap, shares
from ..metrics import with_means
from .plan import Run
from .results import Result

Interval = tuple[float, float, float]
Point = tuple[str, tuple[str, float] | None]  # method and place on its curve
# What embeddings without any knowledge pass: of four exchangeable similarities GS needs the largest and the smallest in
# their places (1/12) and PU the smallest of three (1/3); where similarities are a sum of a text's and an image's own
# part, as in a collapsed model, both need two coins to fall right (1/4).
CHANCE = {"GS": (1 / 12, 1 / 4), "PU": (1 / 4, 1 / 3)}
REPEATS = 1000


@dataclass(frozen=True)
class Figure:
    """One figure of a row.

    Attributes:
        value: Mean over the seeds, and the 95 % interval of `shares` over the queries of their means over the seeds.
        seeds: Smallest and largest of the seeds' own values.
        difference: To the unedited model, paired query by query, with its interval.
    """

    value: Interval
    seeds: tuple[float, float]
    difference: Interval


@dataclass(frozen=True)
class Row:
    """One point of one method on one evaluation set.

    Attributes:
        method, at: As in `Run`.
        figures: Name -> figure, fractions: those of `uwm.metrics`, and ``zero_shot`` with its parts.
        seconds, peak_memory_mb, peak_device_mb: What making the model took, mean and maxima over the seeds; None for a
            model that was there already.
        changed, trained: Entries edited and parameters trained, means over the seeds.
        runs: How many seeds.
    """

    method: str
    at: tuple[str, float] | None
    figures: dict[str, Figure] = field(repr=False)
    seconds: float | None = None
    peak_memory_mb: int | None = None
    peak_device_mb: int | None = None
    changed: float | None = None
    trained: float | None = None
    runs: int = 1

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        at = None if self.at is None else {"by": self.at[0], "value": self.at[1]}
        figures = {name: dict(vars(figure)) for name, figure in self.figures.items()}
        return {**vars(self), "at": at, "figures": figures}


def rows(
    results: Mapping[Run, Result], classes: Mapping[str, Mapping[str, torch.Tensor]], seed: int
) -> dict[str, list[Row]]:
    """Evaluation set -> a row for each method and point, in the runs' order; the first is the unedited model.

    Points that training did not reach with every seed are left out.

    Args:
        results: Of all runs.
        classes: Data set -> ``safe``, ``unsafe`` -> which images, bool [images]; only those that have both kinds.
        seed: For the bootstrap.
    """
    points: dict[Point, list[Result]] = {}
    for run, result in results.items():
        points.setdefault((run.method, run.at), []).append(result)
    reached = {point: found for point, found in points.items() if not any(result.stopped for result in found)}
    base = next(iter(reached.values()))
    known = _zero_shot(reached, base, classes, seed)
    return {
        name: [
            Row(
                method,
                at,
                _on_queries(found, base, name, seed) | known[method, at],
                runs=len(found),
                **_costs(found),
            )
            for (method, at), found in reached.items()
        ]
        for name in base[0].samples
    }


def _costs(found: Sequence[Result]) -> dict[str, Any]:
    """What making the models took; measuring them is the same for all and does not count."""
    making = [{n: c for n, c in result.costs.items() if n != "evaluate"} for result in found]
    every = [cost for costs in making for cost in costs.values()]
    return {
        "seconds": _mean([sum(c.seconds for c in costs.values()) for costs in making]) if every else None,
        "peak_memory_mb": max((c.peak_memory_mb for c in every if c.peak_memory_mb is not None), default=None),
        "peak_device_mb": max((c.peak_device_mb for c in every if c.peak_device_mb is not None), default=None),
        "changed": _mean([result.changed for result in found]),
        "trained": _mean([result.trained for result in found]),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _on_queries(found: Sequence[Result], base: Sequence[Result], name: str, seed: int) -> dict[str, Figure]:
    """The figures on one evaluation set."""
    each = [with_means(result.samples[name]) for result in found]
    own, before = _over_seeds(each), _over_seeds([with_means(result.samples[name]) for result in base])
    values = shares(own, seed, REPEATS)
    changes = bootstrap({figure: own[figure] - before[figure] for figure in own}, seed, REPEATS)
    return {
        figure: Figure(values[figure], _range([seed[figure].mean().item() for seed in each]), changes[figure])
        for figure in own
    }


def _over_seeds(samples: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Figure -> each query's mean over the seeds, float64 [n]."""
    return {name: torch.stack([seed[name] for seed in samples]).mean(0) for name in samples[0]}


def _range(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _zero_shot(
    points: Mapping[Point, Sequence[Result]],
    base: Sequence[Result],
    classes: Mapping[str, Mapping[str, torch.Tensor]],
    seed: int,
) -> dict[Point, dict[str, Figure]]:
    """Point -> zero-shot accuracy: the mean over data sets, each of them, and over their safe and unsafe classes."""
    names = [*base[0].right]
    parts: dict[str, dict[str, Any]] = {ZERO_SHOT: dict.fromkeys(names)} if names else {}
    if len(names) > 1:
        parts |= {f"{ZERO_SHOT}:{name}": {name: None} for name in names}
    for kind in ("safe", "unsafe"):
        chosen = {name: classes[name][kind] for name in names if kind in classes.get(name, {})}
        parts |= {f"{ZERO_SHOT}:{kind}": chosen} if chosen else {}
    return {
        point: {figure: _accuracy(found, base, part, seed) for figure, part in parts.items()}
        for point, found in points.items()
    }


def _accuracy(
    found: Sequence[Result], base: Sequence[Result], part: Mapping[str, torch.Tensor | None], seed: int
) -> Figure:
    """The plain mean over data sets of the share of their (chosen) images that were classified correctly."""

    def images(results: Sequence[Result]) -> list[torch.Tensor]:
        each = {n: torch.stack([r.right[n].double() for r in results]).mean(0) for n in part}
        return [each[n] if rows is None else each[n][rows] for n, rows in part.items()]

    own, before = images(found), images(base)
    of_seeds = [np.mean([rows.mean().item() for rows in images([result])]) for result in found]
    change = [now - then for now, then in zip(own, before, strict=True)]
    return Figure(mean_of_means(own, seed), _range([float(value) for value in of_seeds]), mean_of_means(change, seed))


def mean_of_means(groups: Sequence[torch.Tensor], seed: int, repeats: int = REPEATS) -> Interval:
    """The mean of the groups' means with a percentile bootstrap 95 % interval that resamples within each group.

    Args:
        groups: Values [n] each; n may differ.
        seed: For the resampling; of one group the result is that of `uwm.intervals.bootstrap`.
        repeats: How many resamples.
    """
    means = np.zeros(repeats)
    for number, values in enumerate(groups):
        rng, n, known = np.random.default_rng(seed if number == 0 else (seed, number)), len(values), values.numpy()
        means += [np.bincount(rng.integers(n, size=n), minlength=n) @ known / n for _ in range(repeats)]
    low, high = np.percentile(means / len(groups), [2.5, 97.5])
    return float(np.mean([values.mean().item() for values in groups])), float(low), float(high)
