"""What one run measured, kept as one small file: pass or fail of every query and image, and its cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
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
from ..statistics.batches import Progress

KIND = "comparison result"
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

    def save(self, path: Path) -> None:
        """Write one safetensors file, atomically."""
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
        }
        records.write(path, KIND, tensors, about)

    @classmethod
    def load(cls, path: Path) -> Result:
        """Read what `save` wrote. Raises BadInput when it is something else, damaged or of another version."""
        tensors, about = records.read(path, KIND)
        try:
            return cls(
                {n: dict(zip(f, tensors[PAIRS + n], strict=True)) for n, f in about["figures"].items()},
                {name: tensors[PICTURES + name] for name in about["data_sets"]},
                {stage: Cost(**cost) for stage, cost in about["costs"].items()},
                about["changed"],
                about["trained"],
                tuple(about["notes"]),
                about["stopped"],
            )
        except (LookupError, TypeError, ValueError) as error:
            raise BadInput(f"{path}: damaged result ({error!r}); delete it, and it is made anew") from None


@dataclass(frozen=True)
class Yardstick:
    """What every model is measured on, and how."""

    sets: Mapping[str, CalibrationSet]
    data_sets: Mapping[str, DataSet]
    batch_size: int
    workers: int
    seed: int

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
