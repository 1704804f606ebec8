"""Which runs a comparison consists of: every method at every point of its curve, with every seed, under one key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from typing import Any

from ..backends.protocol import Backend
from ..version import __version__
from .methods import Edit, Given, Method, Stage, Train
from .settings import CompareRecipe

FORMAT = 3  # of results; raise it when they are made in another way


@dataclass(frozen=True)
class Run:
    """One point of one method with one seed.

    Attributes:
        method: Its label.
        at: Where on its curve: a setting such as ``mass``, or ``epoch``, and the number; None for a method of one
            point, and for the best epoch.
        seed: Of the row.
        prefix: The stages before the last.
        stage: The last one, at its point; None for the unedited model.
        key: sha256 over all that decides the result; runs of equal keys are one.
    """

    method: str
    at: tuple[str, float] | None
    seed: int
    prefix: tuple[Stage, ...]
    stage: Stage | None
    key: str = field(default="", compare=False)

    @property
    def epoch(self) -> int | None:
        """After which epoch of the last stage's training; None for the best."""
        return int(self.at[1]) if self.at and self.at[0] == "epoch" else None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All of them."""
        return self.prefix if self.stage is None else (*self.prefix, self.stage)

    def name(self) -> str:
        """For people."""
        return " ".join([self.method, *([] if self.at is None else [spelt(self.at)]), f"seed {self.seed}"])


def spelt(at: tuple[str, float]) -> str:
    """``τ 0.02``, ``strength 0.5`` or ``epoch 4``."""
    return f"{'τ' if at[0] == 'mass' else at[0].replace('_', '-')} {at[1]:g}"


@dataclass(frozen=True)
class Facts:
    """What decides results beside the methods.

    Attributes:
        shared: Of all runs: the model's and the sets' fingerprints, device, batch size.
        calibration, validation: Seed -> fingerprint of the pairs.
        checkpoints: Reference -> fingerprint of its files.
        backends: Those that can be asked for.
        training: How all of them train.
    """

    shared: Mapping[str, Any]
    calibration: Mapping[int, str]
    validation: Mapping[int, str]
    checkpoints: Mapping[str, Any]
    backends: Mapping[str, Backend]
    training: Mapping[str, Any]


def plan(recipe: CompareRecipe, methods: list[Method], facts: Facts) -> list[Run]:
    """Every run, in the order of the table."""
    return [
        replace(run, key=key_of(run.stages, seed, facts, run.epoch))
        for method in methods
        for at, stage in _points(recipe, method)
        for seed in recipe.seeds
        for run in [Run(method.label, at, seed, method.stages[:-1], stage)]
    ]


def _points(recipe: CompareRecipe, method: Method) -> Iterator[tuple[tuple[str, float] | None, Stage | None]]:
    """Places on a method's curve, and its last stage there."""
    last = method.stages[-1] if method.stages else None
    if isinstance(last, Edit):
        curves = [(name, values) for name, values in recipe.curves().items() if last.has(name) and not last.given(name)]
        yield from (((name, value), last.at(name, value)) for name, values in curves for value in values)
        if curves:
            return
    if isinstance(last, Train):
        yield from ((("epoch", epoch), last) for epoch in recipe.at_epochs)
    yield None, last


def key_of(stages: tuple[Stage, ...], seed: int, facts: Facts, epoch: int | None = None) -> str:
    """sha256 over all that decides a model and its figures; the seed only where something may be drawn with it."""
    about = [_about(stage, seed, facts) for stage in stages]
    whole = {"format": FORMAT, "uwm": __version__, "shared": facts.shared, "stages": about, "epoch": epoch}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _about(stage: Stage, seed: int, facts: Facts) -> dict[str, Any]:
    """What decides a stage."""
    if isinstance(stage, Given):
        return {"checkpoint": facts.checkpoints[stage.reference]}
    if isinstance(stage, Train):
        used = {"calibration": facts.calibration[seed], "validation": facts.validation[seed], "seed": seed}
        own = asdict(facts.backends[stage.backend].settings) | dict(stage.changes)
        return {"backend": stage.backend, "settings": own, "how": facts.training, **used}
    return {"edit": asdict(stage), "calibration": facts.calibration[seed], "seed": seed}


def grouped(runs: list[Run]) -> Iterator[tuple[tuple[int, tuple[Stage, ...]], list[list[Run]]]]:
    """Runs that start from one model, (seed, stages before the last), and among them those that share work.

    Runs of equal keys come once. What starts from the given model comes first.
    """
    once = list({run.key: run for run in reversed(runs)}.values())[::-1]
    once.sort(
        key=lambda run: (run.seed, len(run.prefix), repr(run.prefix), run.stage is not None, repr(shared_work(run)))
    )
    for start, same in groupby(once, key=lambda run: (run.seed, run.prefix)):
        yield start, [list(found) for _, found in groupby(same, key=shared_work)]


def shared_work(run: Run) -> Any:
    """What runs from the same model do only once: gathering statistics, training, opening."""
    return run.stage.measured() if isinstance(run.stage, Edit) else run.stage
