"""Carrying out the runs of a comparison: what they share is done once, and each result is kept at once."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..cache import EmbeddingCache
from ..clock import measured
from ..editing.live import patched
from ..inputs import model_warnings
from ..models import Model
from ..stages import finish, plan
from ..stages import stage as begin
from ..statistics.batches import Progress
from .bench import CHECKPOINTS, TRAINING, Bench, Made, joined, keep_costs
from .methods import Edit, Given, Train
from .plan import Run, grouped
from .results import Result, Yardstick

RESULTS = "results"
PARTS = 6  # of a run, about: a pass, and each set by captions and images

logger = logging.getLogger(__name__)


def path_of(output: Path, run: Run) -> Path:
    """Where a run's result is kept."""
    return output / RESULTS / f"{run.key}.safetensors"


def carry_out(runs: list[Run], bench: Bench, yardstick: Yardstick, keep: bool, progress: Progress | None) -> None:
    """Make every result that is not there yet.

    Args:
        runs: All of the comparison.
        bench: Where models are made.
        yardstick: What they are measured on.
        keep: Leave the checkpoints of all points of fine-tuning.
        progress: As in `uwm.score`; called for what each run does.
    """
    missing = [run for run in runs if not path_of(bench.output, run).is_file()]
    steps = _Steps(len({run.key for run in missing}), progress)
    for (seed, prefix), groups in grouped(missing):
        made = bench.start(prefix, seed, steps.of(groups[0][0]))
        for group in groups:
            for run, result in _Work(bench, yardstick, made, keep, steps).results(group):
                result.save(path_of(bench.output, run), run.key)
                steps.done()
    finish(progress)


class _Steps:
    """Which of how many runs it is; each is a stage of what is shown."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total, self._progress, self._number, self._told = total, progress, 1, 0
        plan(progress, {f"run {number}": 1.0 for number in range(1, total + 1)})

    def of(self, run: Run) -> Progress | None:
        """Progress within a run."""
        if self._told < self._number:
            logger.info("run %d of %d: %s", self._number, self._total, run.name())
            begin(self._progress, f"run {self._number}", PARTS)
            self._told = self._number
        progress = self._progress
        if progress is None:
            return None

        def within(items: Iterable, total: int, name: str) -> Iterable:
            return progress(items, total, f"{run.name()}: {name}")

        return within

    def done(self) -> None:
        """The next run begins."""
        self._number += 1


@dataclass(frozen=True)
class _Work:
    """Runs that start from one model."""

    bench: Bench
    yardstick: Yardstick
    made: Made
    keep: bool
    steps: _Steps

    def results(self, group: list[Run]) -> Iterator[tuple[Run, Result]]:
        """The results of runs that share their work."""
        stage, progress = group[0].stage, self.steps.of(group[0])
        if isinstance(stage, Edit):
            yield from self._edits(group, stage, progress)
        elif isinstance(stage, Train):
            yield from self._epochs(group, progress)
        elif isinstance(stage, Given):
            yield group[0], self._measure(self.bench.open(stage.reference), progress)
        else:
            found = self._measure(self.made.model, progress, cache=EmbeddingCache.default())
            yield group[0], replace(found, notes=(*self._warnings(group[0].seed), *self.made.model.notes))

    def _edits(self, group: list[Run], stage: Edit, progress: Progress | None) -> Iterator[tuple[Run, Result]]:
        """One pass for statistics, and a patch for each run."""
        model = self.made.model
        statistics, gathering = self.bench.gather(model, stage, group[0].seed, progress)
        for run in group:
            assert isinstance(run.stage, Edit)
            patch, editing = self.bench.patch(model, statistics, run.stage, run.seed)
            with patched(model, patch):
                found = self._measure(model, self.steps.of(run))
            costs = joined(self.made.costs, {"gather": gathering, "edit": editing}, found.costs)
            yield run, replace(found, costs=costs, changed=sum(patch.counts().values()), trained=self.made.trained)

    def _epochs(self, group: list[Run], progress: Progress | None) -> Iterator[tuple[Run, Result]]:
        """One training, and the checkpoint of each run's epoch, loaded as a user would."""
        epochs = sorted({run.epoch for run in group if run.epoch is not None})
        first = group[0]
        trained, cost = self.bench.train(self.made.model, first.stages, first.seed, epochs, progress)
        for run in group:
            adapter = trained.adapter if run.epoch is None else trained.snapshots.get(run.epoch)
            if adapter is None:
                yield run, Result({}, {}, stopped=True, notes=(f"training ended at epoch {len(trained.history)}",))
                continue
            folder = self.bench.folder(CHECKPOINTS, run.stages, run.seed, run.epoch)
            self.bench.write(self.made.model, adapter, folder)
            found = self._measure(self.bench.open(str(folder)), self.steps.of(run))
            if run.epoch is not None and not self.keep:
                shutil.rmtree(folder)
            until = sum(e["seconds"] for e in trained.history if run.epoch is None or e["epoch"] <= run.epoch)
            spent = replace(cost, seconds=round(until, 3)) if run.epoch is not None else cost
            parameters = (self.made.trained or 0) + trained.parameters
            notes = (f"best epoch {trained.best_epoch} of {len(trained.history)}",) if run.epoch is None else ()
            costs = joined(self.made.costs, {"train": spent})
            if run.epoch is None:
                keep_costs(folder, costs, parameters)
            yield run, replace(found, costs=costs | found.costs, trained=parameters, notes=notes + found.notes)

    def _warnings(self, seed: int) -> Iterator[str]:
        """What a user should know about the unedited model with the sets, said once for all runs."""
        sets = {"calibration": self.bench.calibration[seed], **self.yardstick.sets}
        return model_warnings(self.made.model, sets, self.yardstick.data_sets)

    def _measure(self, model: Model, progress: Progress | None, **settings: Any) -> Result:
        with measured() as cost:
            found = self.yardstick.measure(model, progress=progress, **settings)
        return replace(found, costs={"evaluate": cost})


def clear(output: Path, keep: bool) -> None:
    """Remove what was only needed on the way."""
    for folder in (TRAINING, *(() if keep else (CHECKPOINTS,))):
        shutil.rmtree(output / folder, ignore_errors=True)
