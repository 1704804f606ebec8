"""The figures of an edit by cross-validation: every pair is measured under the edit that was made without its fold."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from ..calibration import CalibrationSet
from ..editing.changes import Change
from ..editing.live import changed
from ..embedding import SIDES, Embeddings, items_of, keys_of
from ..evaluation import EvalResult, summary
from ..figures import KS, PRESERVED
from ..images import load_image
from ..knowledge import DataSet, ZeroShot
from ..knowledge.measure import class_labels, figures_of, hits_of, mean_of_prompts
from ..metrics import TIE, Retrieval, safeground_samples, with_means
from ..models import Model
from ..statistics.batches import Progress
from ..weights import WeightId
from .folds import Folds
from .kept import Kept, Room, Source

MOST_PAIRS = 1000  # measured in a trial; ranks among more cost more than they tell

FIRST = (1,)  # the cut-off of recall that most objectives and limits need

Changes = Mapping[WeightId, Change]


@dataclass(frozen=True)
class Edits:
    """One candidate: its changes from all pairs, and from the pairs without each fold."""

    whole: Changes
    folds: tuple[Changes, ...]


class Judge:
    """Measures edits on what they may be chosen by.

    Safety and safe R@1 are measured fold by fold, each fold's pairs as queries among all pairs. Data sets, which no
    edit learns from, are measured under the edit of all pairs.

    Args:
        model: Unedited, with both towers.
        folds: What edits learn from.
        data_sets: The halves to choose by.
        seed: Draws the pairs where there are more than `MOST_PAIRS`.
        batch_size, workers, progress: As in `uwm.score`.
    """

    def __init__(
        self,
        model: Model,
        folds: Folds,
        data_sets: Mapping[str, DataSet],
        *,
        seed: int,
        batch_size: int,
        workers: int,
        progress: Progress | None = None,
    ) -> None:
        self._model, self._data_sets = model, data_sets
        self._whole, self._rows = _measured_pairs(folds, seed)
        items = items_of(self._whole)
        self._retrieval: dict[tuple[int, ...], list[Retrieval]] = {
            ks: [Retrieval(items, rows, ks) for rows in self._rows] for ks in (FIRST, KS)
        }
        room = Room()
        kept = partial(Kept, model, room=room, batch_size=batch_size, workers=workers, progress=progress)
        self._preserved = _Preserved(folds)
        self._pairs, self._places = {}, {}
        for tower, modality in (("text", "text"), ("vision", "image")):
            sources, self._places[tower] = _different(self._whole, modality)
            self._pairs[tower] = kept(tower, [*sources, *self._preserved.sources(tower)])
        self._labels = {name: class_labels(model, data) for name, data in data_sets.items()}
        self._targets: dict[str, dict[int, int]] = {name: {} for name in data_sets}
        self._prompts = kept("text", [prompt for data in data_sets.values() for prompt in _prompts(data)])
        self._pictures = kept("vision", [*self._readers()])
        nothing = Edits({}, tuple({} for _ in folds.pairs))
        self._first = self._preserved.first_results(*self._embed_pairs({}), self._places)
        self.baseline = self.measure(nothing)

    @property
    def pairs(self) -> int:
        """How many pairs are measured."""
        return len(self._whole)

    def is_quick(self, changes: Changes) -> bool:
        """Whether an edit of these tensors is measured without running a block."""
        return all(kept.is_quick(changes) for kept in self._pairs.values())

    def measure(self, edits: Edits, ks: tuple[int, ...] = KS) -> EvalResult:
        """Samples of all figures, each pair's under the edit made without its fold; `with_intervals` makes intervals.

        Args:
            edits: From all pairs, and without each fold.
            ks: Cut-offs of recall, `FIRST` or `KS`.

        Raises:
            InvalidResult: NaN or infinite embeddings.
        """
        parts = []
        for fold, (rows, changes) in enumerate(zip(self._rows, edits.folds, strict=True)):
            with changed(self._model, changes):
                text, images = self._embed_pairs(changes)
            found = self._samples(text, images, rows, self._retrieval[ks][fold])
            kept = self._preserved.kept(fold, text, images, self._places, self._first)
            parts.append((rows, found, kept))
        order = torch.cat([rows for rows, _, _ in parts])
        samples = {name: torch.empty(len(order), dtype=torch.float64) for name in parts[0][1]}
        for rows, found, _ in parts:
            for name, values in found.items():
                samples[name][rows] = values.double()
        kept = torch.cat([kept for _, _, kept in parts])
        known = self._zero_shot(edits.whole)
        figures = {name: _mean(values) for name, values in samples.items()}
        return EvalResult(
            len(self._whole),
            figures | ({PRESERVED: _mean(kept)} if len(kept) else {}),
            {name: found.figures for name, found in known.items()},
            samples=samples,
            right={name: found.right for name, found in known.items()},
            safe={name: found.safe for name, found in known.items() if found.safe is not None},
            preserved=kept if len(kept) else None,
        )

    def with_intervals(self, result: EvalResult, seed: int) -> EvalResult:
        """The same result with intervals, and figures by concept."""
        return replace(result, **summary(result.samples, self._whole, seed, result.preserved))

    # ------------------------------------------------------------ pairs

    def _embed_pairs(self, changes: Changes) -> tuple[torch.Tensor, torch.Tensor]:
        return self._pairs["text"].embed(changes), self._pairs["vision"].embed(changes)

    def _samples(
        self, text: torch.Tensor, images: torch.Tensor, rows: torch.Tensor, retrieval: Retrieval
    ) -> dict[str, torch.Tensor]:
        """SafeGround and retrieval of some rows, among all."""
        place = self._places
        sides = [text[place["text"][side]] for side in SIDES] + [images[place["vision"][side]] for side in SIDES]
        embeddings = Embeddings(*sides)
        own = {name: found[rows] for name, found in vars(embeddings).items()}
        return with_means(safeground_samples(**own) | retrieval.samples(vars(embeddings)))

    # ------------------------------------------------------------ data sets

    def _readers(self) -> Iterator[Source]:
        """What reads each picture, and notes its class."""
        for name, data in self._data_sets.items():
            for index in range(len(data)):
                yield partial(self._read, name, index)

    def _read(self, name: str, index: int) -> Any:
        picture, self._targets[name][index] = self._data_sets[name].read(index)
        return picture

    def _zero_shot(self, changes: Changes) -> dict[str, ZeroShot]:
        if not self._data_sets:
            return {}
        with changed(self._model, changes):
            prompts, pictures = self._prompts.embed(changes), self._pictures.embed(changes)
        found, first, begin = {}, 0, 0
        for name, data in self._data_sets.items():
            count = len(data.class_names) * len(data.templates)
            labels, place = self._labels[name].unique(return_inverse=True)
            classes = mean_of_prompts(data, prompts[first : first + count])[labels]
            own = torch.tensor([self._targets[name][index] for index in range(len(data))])
            hits = hits_of(pictures[begin : begin + len(data)] @ classes.T, place[own])
            found[name] = figures_of(data, place, hits, own, None)
            first, begin = first + count, begin + len(data)
        return found


class _Preserved:
    """The preservation set: whether the first result of its captions and images stays the same.

    Candidates are the safe items of the pairs and the preserved ones of the other modality. A result within `TIE` of
    the first one is as good.
    """

    def __init__(self, folds: Folds) -> None:
        self._captions = [(fold, text) for fold, part in enumerate(folds.preserved) for text in part.captions]
        self._images = [(fold, path) for fold, part in enumerate(folds.preserved) for path in part.images]

    def sources(self, tower: str) -> list[Source]:
        """What to embed."""
        if tower == "text":
            return [text for _, text in self._captions]
        return [partial(load_image, path) for _, path in self._images]

    def first_results(self, text: torch.Tensor, images: torch.Tensor, places: Any) -> list[torch.Tensor]:
        """The number of the best candidate of each caption, and of each image."""
        return [(ask @ answer.T).argmax(1) for ask, answer, _ in self._sides(text, images, places)]

    def kept(
        self, fold: int, text: torch.Tensor, images: torch.Tensor, places: Any, first: list[torch.Tensor]
    ) -> torch.Tensor:
        """1 where the first result of a caption or an image of this fold is as good as the best, float64 [n]."""
        if not (self._captions or self._images):
            return torch.empty(0, dtype=torch.float64)
        found = []
        for (ask, answer, folds), best in zip(self._sides(text, images, places), first, strict=True):
            rows = (folds == fold).nonzero().flatten()
            cosine = ask[rows] @ answer.T
            found.append(cosine.gather(1, best[rows, None])[:, 0] >= cosine.amax(1) - TIE)
        return torch.cat(found).double()

    def _sides(self, text: torch.Tensor, images: torch.Tensor, places: Any) -> Iterator[tuple[torch.Tensor, ...]]:
        """Queries, candidates and the queries' folds: of captions, then of images."""
        captions, pictures = (
            rows[len(rows) - len(own) :] for rows, own in ((text, self._captions), (images, self._images))
        )
        safe = [text[places["text"]["safe"].unique()], images[places["vision"]["safe"].unique()]]
        for own, queries, candidates in (
            (self._captions, captions, torch.cat([safe[1], pictures])),
            (self._images, pictures, torch.cat([safe[0], captions])),
        ):
            yield queries, candidates, torch.tensor([fold for fold, _ in own], dtype=torch.long)


def _measured_pairs(folds: Folds, seed: int) -> tuple[CalibrationSet, list[torch.Tensor]]:
    """The complete quadruples, `MOST_PAIRS` at most, and the rows of each fold among them."""
    parts = [[pair for pair in part.pairs if pair.has_text and pair.has_image] for part in folds.pairs]
    total = sum(map(len, parts))
    if total > MOST_PAIRS:
        share = MOST_PAIRS / total
        parts = [random.Random(seed).sample(part, round(share * len(part))) for part in parts]
    ends = torch.tensor([0, *map(len, parts)]).cumsum(0).tolist()
    rows = [torch.arange(first, last) for first, last in pairwise(ends)]
    return replace(folds.pairs[0], pairs=tuple(pair for part in parts for pair in part)), rows


def _different(whole: CalibrationSet, modality: str) -> tuple[list[Source], dict[str, torch.Tensor]]:
    """Every different caption or image once, and which of them each side of each pair is."""
    sources: dict[str, Source] = {}
    keys = {side: keys_of(whole, modality, side) for side in SIDES}
    for side, own in keys.items():
        for pair, key in zip(whole.pairs, own, strict=True):
            found = getattr(pair, f"{side}_{modality}")
            sources.setdefault(key, partial(load_image, found) if isinstance(found, Path) else found)
    number = {key: place for place, key in enumerate(sources)}
    return [*sources.values()], {side: torch.tensor([number[key] for key in own]) for side, own in keys.items()}


def _prompts(data: DataSet) -> list[str]:
    return [template.replace("{}", name) for name in data.class_names for template in data.templates]


def _mean(values: torch.Tensor) -> tuple[float, float, float]:
    """A mean without its interval: the bounds are NaN, so that no requirement on them is met by mistake."""
    return values.mean().item(), float("nan"), float("nan")
