"""What one run measured, kept as one small file: pass or fail of every query and image, and its cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .. import records
from ..cache import EmbeddingCache
from ..calibration import CalibrationSet
from ..clock import Cost
from ..embedding import collapsed_towers, embed, items_of, quadruples
from ..errors import BadInput
from ..knowledge import DataSet, zero_shot
from ..metrics import retrieval_samples, safeground_samples
from ..models import Model
from ..schema import (
    COUNT,
    FLAG,
    NONE,
    TEXT,
    Forms,
    TensorForm,
    Unexpected,
    each,
    keyed,
    listed,
    mapped,
    nullable,
    within,
)
from ..statistics.batches import Progress

KIND = "comparison result"
ANEW = "delete it, and it is made anew"
PAIRS, PICTURES = "pairs:", "pictures:"  # prefixes of tensor names


@dataclass(frozen=True)
class Result:
    """One run's figures before they are averaged.

    Attributes:
        samples: Evaluation set -> figure -> values of 0 to 1, [n], as `uwm.metrics` has them.
        right: Data set -> whether each image was classified correctly, 0 to 1, [images].
        costs: Stage -> what it took; the stages of making the model, and ``evaluate``.
        changed, trained: Entries edited by the last stage, parameters trained by any; None where there are none.
        notes: What a reader should know, such as training that stopped early.
        stopped: Training ended before the epoch to measure; there are no figures.
    """

    samples: dict[str, dict[str, torch.Tensor]] = field(repr=False)
    right: dict[str, torch.Tensor] = field(repr=False)
    costs: dict[str, Cost] = field(default_factory=dict)
    changed: int | None = None
    trained: int | None = None
    notes: tuple[str, ...] = ()
    stopped: bool = False

    def save(self, path: Path, key: str) -> None:
        """Write one safetensors file, atomically; `key` says which run it belongs to."""
        tensors = {PAIRS + name: torch.stack([*found.values()]) for name, found in self.samples.items()}  # [figures, n]
        tensors |= {PICTURES + name: found for name, found in self.right.items()}
        tensors = {name: _small(found) for name, found in tensors.items()}
        tensors = tensors or {"nothing": torch.zeros(1, dtype=torch.bool)}  # a record holds at least one
        about = {
            "figures": {name: [*found] for name, found in self.samples.items()},
            "data_sets": [*self.right],
            "costs": {stage: asdict(cost) for stage, cost in self.costs.items()},
            "changed": self.changed,
            "trained": self.trained,
            "notes": [*self.notes],
            "stopped": self.stopped,
            "run": key,
        }
        records.write(path, KIND, tensors, about)

    @classmethod
    def load(cls, path: Path, wanted: Wanted) -> Result:
        """Read what `save` wrote. Raises BadInput when it is something else, damaged, or of another run."""
        tensors, about = records.read(path, KIND, wanted.form())
        for name, tensor in tensors.items():
            if not bool(((tensor >= 0) & (tensor <= 1)).all()):
                raise BadInput(f"{path}: damaged: tensor {name}: expected values from 0 to 1, found others; {ANEW}")
        return cls(
            {n: dict(zip(f, tensors[PAIRS + n], strict=True)) for n, f in about["figures"].items()},
            {name: tensors[PICTURES + name] for name in about["data_sets"]},
            {stage: Cost(**cost) for stage, cost in about["costs"].items()},
            about["changed"],
            about["trained"],
            tuple(about["notes"]),
            about["stopped"],
        )


@dataclass(frozen=True)
class Wanted:
    """What the result of a run must be of.

    Attributes:
        key: Of the run.
        sets: Evaluation set -> its pairs.
        data_sets: Data set -> its images.
        may_stop: Whether training may have ended before the epoch that is measured.
    """

    key: str
    sets: Mapping[str, int]
    data_sets: Mapping[str, int]
    may_stop: bool = False

    def form(self) -> records.Form:
        """Of its record."""
        return records.Form(each(keyed(PARTS), self._check), self._tensors, ANEW)

    def _check(self, about: Mapping[str, Any], place: str) -> None:
        """That it is of this run and these sets. Raises Unexpected."""
        if about["run"] != self.key:
            raise Unexpected("run", f"{self.key}, the run that this file is named for", about["run"])
        if about["stopped"] and not self.may_stop:
            raise Unexpected("stopped", "false, for this run is not of an epoch", True)
        measured = not about["stopped"]
        sets, data_sets = ([*self.sets], [*self.data_sets]) if measured else ([], [])
        if sorted(about["figures"]) != sorted(sets):
            raise Unexpected("figures", f"the sets {sets}", [*about["figures"]])
        if sorted(about["data_sets"]) != sorted(data_sets):
            raise Unexpected("data_sets", f"the data sets {data_sets}", about["data_sets"])
        for name, figures in about["figures"].items():
            if sorted(figures) != sorted(figure_names()):
                raise Unexpected(f"figures.{name}", f"the figures {sorted(figure_names())}", figures)

    def _tensors(self, about: Mapping[str, Any]) -> tuple[Forms, Forms]:
        if about["stopped"]:
            return {"nothing": TensorForm(SAMPLES, (1,))}, {}
        count = len(figure_names())
        pairs = {PAIRS + name: TensorForm(SAMPLES, (count, self.sets[name])) for name in about["figures"]}
        return pairs | {PICTURES + n: TensorForm(SAMPLES, (self.data_sets[n],)) for n in about["data_sets"]}, {}


SAMPLES = ("bool", "float32", "float64")
COST = keyed(
    {"seconds": within(0, 1e12), "peak_memory_mb": nullable(COUNT), "peak_device_mb": nullable(COUNT)}, {}, NONE
)
COSTS = mapped(COST)
PARTS = {
    "figures": mapped(listed(TEXT)),
    "data_sets": listed(TEXT),
    "costs": COSTS,
    "changed": nullable(COUNT),
    "trained": nullable(COUNT),
    "notes": listed(TEXT),
    "stopped": FLAG,
    "run": TEXT,
}


@cache
def figure_names() -> tuple[str, ...]:
    """The figures of every evaluation set."""
    one = torch.eye(2)
    return tuple(safeground_samples(one, one, one, one) | retrieval_samples(one, one, one, one))


@dataclass(frozen=True)
class Yardstick:
    """What every model is measured on, and how."""

    sets: Mapping[str, CalibrationSet]
    data_sets: Mapping[str, DataSet]
    batch_size: int
    workers: int
    seed: int

    def wanted(self, key: str, epoch: int | None) -> Wanted:
        """What the result of a run must be of."""
        sets = {name: len(found) for name, found in self.sets.items()}
        return Wanted(key, sets, {name: len(found) for name, found in self.data_sets.items()}, epoch is not None)

    def measure(self, model: Model, *, progress: Progress | None = None, cache: EmbeddingCache | None = None) -> Result:
        """The samples of a model as it is now, and a note for every tower that has collapsed."""
        shared: dict[str, Any] = {"batch_size": self.batch_size, "workers": self.workers, "progress": progress}
        samples, notes = {}, []
        for name, pairs in self.sets.items():
            embeddings, items = embed(model, pairs, cache=cache, **shared), items_of(quadruples(pairs))
            found = vars(embeddings)
            samples[name] = safeground_samples(**found) | retrieval_samples(**found, items=items)
            notes += [f"the {tower} tower has collapsed on {name}" for tower in collapsed_towers(embeddings, items)]
        known = {name: zero_shot(model, data, seed=self.seed, **shared) for name, data in self.data_sets.items()}
        return Result(samples, {name: found.right for name, found in known.items()}, notes=tuple(notes))


def _small(samples: torch.Tensor) -> torch.Tensor:
    """Samples as bool where no query is worth a part."""
    passed = samples.bool()
    return passed if samples.equal(passed.to(samples)) else samples


def classes_of(data: DataSet) -> dict[str, torch.Tensor]:
    """Which images of a set with unsafe classes are ``safe`` and ``unsafe``, bool [images]; empty for others.

    Only folders have unsafe classes, and the classes of their images are known without reading them.
    """
    targets = getattr(data.pictures, "targets", None)
    if not data.unsafe_classes or targets is None:
        return {}
    unsafe = torch.tensor([data.class_names[target] in data.unsafe_classes for target in targets])
    return {name: rows for name, rows in (("safe", ~unsafe), ("unsafe", unsafe)) if rows.any()}
