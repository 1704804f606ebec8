"""Whole sets under different edits: pairs, and zero-shot data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..calibration import CalibrationSet
from ..editing.changes import Change
from ..embedding import SIDES, Embeddings, different_items
from ..knowledge import DataSet, ZeroShot
from ..knowledge.measure import class_labels, figures_of, hits_of, mean_of_prompts
from ..models import Model
from ..models.kept import Source
from ..weights import WeightId
from .cached_tower import CachedTower

Changes = Mapping[WeightId, Change]
Keep = Callable[[str, Sequence[Source]], CachedTower]
TOWERS = {"text": "text", "vision": "image"}  # and what of a pair goes through them


@dataclass(frozen=True)
class Embedded:
    """What `CachedPairs` embeds; all normalised, float32, on the CPU.

    Attributes:
        pairs: Row for row.
        safe: Tower -> every different safe item, [items, dim].
        others: Tower -> what else was asked for, [n, dim].
    """

    pairs: Embeddings
    safe: dict[str, torch.Tensor]
    others: dict[str, torch.Tensor]


class CachedPairs:
    """Complete quadruples, each different caption and image once, and other captions and images beside them."""

    def __init__(self, whole: CalibrationSet, keep: Keep, others: Mapping[str, Sequence[Source]] | None = None) -> None:
        self._kept, self._places, self._count = {}, {}, {}
        for tower, modality in TOWERS.items():
            sources, self._places[tower] = _different(whole, modality)
            self._kept[tower] = keep(tower, [*sources, *(others or {}).get(tower, ())])
            self._count[tower] = len(sources)
        self._safe = {tower: self._places[tower]["safe"].unique() for tower in TOWERS}

    def embed(self, changes: Changes) -> Embedded:
        """Under these changes. Raises InvalidResult for embeddings that are not finite."""
        rows = {tower: kept.embed(changes) for tower, kept in self._kept.items()}
        sides = [rows[tower][self._places[tower][side]] for tower in TOWERS for side in SIDES]
        return Embedded(
            Embeddings(*sides),
            {tower: rows[tower][own] for tower, own in self._safe.items()},
            {tower: rows[tower][count:] for tower, count in self._count.items()},
        )

    def is_quick(self, changes: Iterable[WeightId]) -> bool:
        """Whether an edit of these tensors needs none of the blocks again."""
        names = [*changes]
        return all(kept.is_quick(names) for kept in self._kept.values())


class CachedDataSets:
    """Zero-shot data sets: their prompts and their pictures."""

    def __init__(self, model: Model, data_sets: Mapping[str, DataSet], keep: Keep) -> None:
        self._data_sets = data_sets
        self._labels = {name: class_labels(model, data) for name, data in data_sets.items()}
        self._prompts = keep("text", [prompt for data in data_sets.values() for prompt in data.prompts])
        self._pictures = keep("vision", [source for data in data_sets.values() for source in data.sources])
        self._classes = {name: torch.tensor(data.classes) for name, data in data_sets.items()}

    def classify(self, changes: Changes, seed: int | None = None) -> dict[str, ZeroShot]:
        """As `uwm.knowledge.zero_shot` under these changes; without a seed no interval."""
        if not self._data_sets:
            return {}
        prompts, pictures = self._prompts.embed(changes), self._pictures.embed(changes)
        found, first, begin = {}, 0, 0
        for name, data in self._data_sets.items():
            count = len(data.class_names) * len(data.templates)
            labels, place = self._labels[name].unique(return_inverse=True)
            classes = mean_of_prompts(data, prompts[first : first + count])[labels]
            own = self._classes[name]
            hits = hits_of(pictures[begin : begin + len(data)] @ classes.T, place[own])
            found[name] = figures_of(data, place, hits, own, seed)
            first, begin = first + count, begin + len(data)
        return found


def _different(whole: CalibrationSet, modality: str) -> tuple[list[Source], dict[str, torch.Tensor]]:
    """Every different caption, or what reads an image, once; and which of them each side of each pair is."""
    items, places = different_items(whole, modality)
    return items, dict(zip(SIDES, places, strict=True))
