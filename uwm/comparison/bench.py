"""Where models are made: opened, scored, trained, edited, with what each stage took."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..backends import Adapter, Trained, train, write_trained
from ..cache import EmbeddingCache
from ..calibration import CalibrationSet, Preservation
from ..checkpoint.json_files import checked_json
from ..clock import Cost, measured
from ..editing.editors import Statistics
from ..editing.files import fit, write_patched
from ..editing.making import about, gather, make_patch
from ..editing.patch import Patch
from ..errors import BadInput
from ..inputs import SharedImages, load_model
from ..models import Model
from ..outputs import new_folder, put_file
from ..schema import COUNT, keyed, nullable
from ..statistics.batches import Progress
from .methods import Edit, Given, Stage, Train
from .plan import Facts, key_of
from .results import COST, COSTS
from .settings import CompareRecipe

CHECKPOINTS, TRAINING = "checkpoints", "training"
KEPT = keyed({"costs": COSTS, "trained": nullable(COUNT)})
Costs = dict[str, Cost]


@dataclass(frozen=True)
class Made:
    """A model, what the stages took that made it, and how many parameters they trained."""

    model: Model
    costs: Costs = field(default_factory=dict)
    trained: int | None = None


@dataclass(frozen=True)
class Bench:
    """What making models needs.

    Attributes:
        recipe: The settings.
        facts: For the names of what is written.
        calibration, validation: Seed -> pairs.
        output: Where checkpoints and the state of training lie while they are needed.
        images: Those of all sets, which the models keep together.
        preserve: Safe captions and images that edits shall leave alone, of those that can; None for none.
    """

    recipe: CompareRecipe
    facts: Facts
    calibration: Mapping[int, CalibrationSet]
    validation: Mapping[int, CalibrationSet]
    output: Path
    images: SharedImages
    preserve: Preservation | None = None

    def start(self, stages: tuple[Stage, ...], seed: int, progress: Progress | None) -> Made:
        """The model that these stages make, each but the given ones by way of a checkpoint."""
        if not stages:
            return Made(self._opened(self.recipe))
        *before, stage = stages
        if isinstance(stage, Given):
            return Made(self.open(stage.reference))
        folder = self.folder(CHECKPOINTS, stages, seed)
        about = _beside(folder)
        if not (folder.is_dir() and about.is_file()):
            self._make(folder, self.start(tuple(before), seed, progress), stages, seed, progress)
        known = checked_json(about, KEPT, f"remove {about.name} and {folder.name}, and they are made anew")
        costs = {name: Cost(**cost) for name, cost in known["costs"].items()}
        return Made(self.open(str(folder)), costs, known["trained"])

    def open(self, reference: str) -> Model:
        """A checkpoint as a user would load it."""
        return self._opened(self.recipe.of(reference))

    def _opened(self, recipe: CompareRecipe) -> Model:
        """The model of a recipe, with the images that the models share. Raises BadInput."""
        return self.images.give(_two_towers(load_model(recipe)))

    def _make(
        self, folder: Path, before: Made, stages: tuple[Stage, ...], seed: int, progress: Progress | None
    ) -> None:
        """Write the checkpoint of the last stage, and what it and those before it took."""
        stage = stages[-1]
        if isinstance(stage, Train):
            trained, cost = self.train(before.model, stages, seed, (), progress)
            self.write(before.model, trained.adapter, folder)
            keep_costs(folder, joined(before.costs, {"train": cost}), (before.trained or 0) + trained.parameters)
            return
        assert isinstance(stage, Edit)
        assert before.model.checkpoint is not None
        statistics, gathering = self.gather(before.model, stage, seed, progress)
        patch, editing = self.patch(before.model, statistics, stage, seed)
        shutil.rmtree(folder, ignore_errors=True)
        with new_folder(folder) as new:
            write_patched(before.model.checkpoint, fit(before.model.checkpoint, patch)[0], new)
        keep_costs(folder, joined(before.costs, {"gather": gathering, "edit": editing}), before.trained)

    def gather(self, model: Model, edit: Edit, seed: int, progress: Progress | None) -> tuple[Statistics, Cost]:
        """The statistics of the pairs that all methods of a seed learn from."""
        passed: dict[str, Any] = {"batch_size": self.recipe.batch_size, "workers": self.recipe.workers}
        with measured() as cost:
            pairs = self.calibration[seed]
            statistics = edit.editor.statistics(model, about(pairs), edit.made())
            preserve = self.preserve if statistics.preserve else None  # the others have no use for it
            gather(model, statistics, pairs, progress=progress, preserve=preserve, **passed)
        return statistics, cost

    def patch(self, model: Model, statistics: Statistics, edit: Edit, seed: int) -> tuple[Patch, Cost]:
        """What an edit or its control changes."""
        with measured() as cost:
            make = edit.editor.control if edit.control else edit.editor.edit
            patch = make_patch(model, make(model, statistics, edit.made(), seed), {"method": edit.method})
        return patch, cost

    def train(
        self, model: Model, stages: tuple[Stage, ...], seed: int, epochs: Collection[int], progress: Progress | None
    ) -> tuple[Trained, Cost]:
        """The last stage's training, continued where it was left; its cost is that of all its parts together."""
        stage = stages[-1]
        assert isinstance(stage, Train)
        backend = self.facts.backends[stage.backend]
        if model.dtype != torch.float32:  # what it computes in is `train_dtype`; the reference is exact
            assert model.checkpoint is not None
            model = self._opened(replace(self.recipe.of(str(model.checkpoint.path)), dtype="float32"))
        folder = self.folder(TRAINING, stages, seed)
        state = folder.with_name("-".join([folder.name, *map(str, sorted(epochs))]))  # it holds their snapshots too
        with measured() as cost:
            trained = train(
                model,
                self.calibration[seed],
                self.validation[seed],
                backend,
                replace(backend.settings, **dict(stage.changes)),
                seed=seed,
                computing=self.recipe.computing(),
                progress=progress,
                state=state,
                snapshots=epochs,
                cache=EmbeddingCache.default(),
            )
        return trained, _remembered(_beside(state), cost, trained)

    def write(self, model: Model, adapter: Adapter, folder: Path) -> None:
        """A trained checkpoint, unless it is there."""
        if not folder.is_dir():
            with new_folder(folder) as new:
                write_trained(model, adapter, new)

    def folder(self, kind: str, stages: tuple[Stage, ...], seed: int, epoch: int | None = None) -> Path:
        """Where the model of these stages, or the state of its training, lies."""
        names = [s.method if isinstance(s, Edit) else getattr(s, "backend", "given") for s in stages]
        after = "" if epoch is None else f"-epoch{epoch}"
        name = re.sub(r"[^\w.-]+", "-", "-".join(names)) + after
        return self.output / kind / f"{name}-seed{seed}-{key_of(stages, seed, self.facts)[:16]}"


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def keep_costs(folder: Path, costs: Costs, trained: int | None) -> None:
    """Note beside a checkpoint what it took; then it counts as finished."""
    known = {"costs": {name: asdict(cost) for name, cost in costs.items()}, "trained": trained}
    put_file(_beside(folder), json.dumps(known).encode())


def _two_towers(model: Model) -> Model:
    if len(model.modalities) < 2:
        where = "the model" if model.checkpoint is None else str(model.checkpoint.path)
        raise BadInput(f"{where}: has only a {model.modalities[0]} tower; a comparison needs both")
    return model


def _remembered(path: Path, cost: Cost, trained: Trained) -> Cost:
    """The cost of a training that may have been stopped and continued: the seconds of all its epochs."""
    if path.is_file():
        return Cost(**checked_json(path, COST, "remove it"))
    if trained.resumed_from:
        cost = replace(cost, seconds=round(sum(epoch["seconds"] for epoch in trained.history), 3))
    put_file(path, json.dumps(asdict(cost)).encode())
    return cost


def joined(*found: Costs) -> Costs:
    """The costs of stages one after another; those of equal names are one."""
    together: Costs = {}
    for costs in found:
        for name, cost in costs.items():
            together[name] = _sum(together[name], cost) if name in together else cost
    return together


def _sum(first: Cost, second: Cost) -> Cost:
    def most(*values: int | None) -> int | None:
        return max((value for value in values if value is not None), default=None)

    return Cost(
        round(first.seconds + second.seconds, 3),
        most(first.peak_memory_mb, second.peak_memory_mb),
        most(first.peak_device_mb, second.peak_device_mb),
    )
