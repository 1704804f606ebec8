"""The figures of an edit by cross-validation: every pair is measured under the edit that was made without its fold."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain, pairwise
from typing import Any

import torch

from ..calibration import CalibrationSet
from ..embedding import Embeddings, items_of, quadruples
from ..evaluation import EvalResult, summary, zero_shot_fields
from ..figures import KS, PRESERVED
from ..knowledge import DataSet
from ..metrics import Retrieval, safeground_samples, with_means
from ..models import Model
from ..models.kept import Source
from ..ranks import TIE
from ..statistics.batches import Progress
from .cached_sets import CachedDataSets, CachedPairs, Changes, Embedded
from .cached_tower import CachedTower
from .folds import Folds

MOST_PAIRS = 1000  # measured in a trial; ranks among more cost more than they tell

Part = tuple[dict[str, torch.Tensor], torch.Tensor]  # samples of pairs, and whether preserved inputs stay

FIRST = (1,)  # the cut-off of recall that most objectives and budgets need


@dataclass(frozen=True)
class Edits:
    """One candidate: its changes from all pairs, and from the pairs without each fold."""

    whole: Changes
    folds: Iterable[Changes]


class CrossValidation:
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
        self._whole, self._rows = _measured_pairs(folds, seed)
        items = items_of(self._whole)
        self._retrieval = {
            detailed: [Retrieval(items, rows, KS if detailed else FIRST) if len(rows) else None for rows in self._rows]
            for detailed in (False, True)
        }
        keep = partial(CachedTower, model, batch_size=batch_size, workers=workers, progress=progress)
        self._preserved = _Preserved(folds)
        self._pairs = CachedPairs(self._whole, keep, self._preserved.sources())
        self._data_sets = CachedDataSets(model, data_sets, keep)
        nothing = Edits({}, tuple({} for _ in folds.pairs))
        self._first = self._preserved.first_results(self._pairs.embed({}))
        self._seed = seed
        self.baseline = self.measure(nothing, detailed=True)

    @property
    def pairs(self) -> int:
        """How many pairs are measured."""
        return len(self._whole)

    def is_quick(self, changes: Changes) -> bool:
        """Whether an edit of these tensors is measured without running a block."""
        return self._pairs.is_quick(changes)

    def measure(self, edits: Edits, detailed: bool) -> EvalResult:
        """The figures, each pair's under the edit made without its fold.

        Args:
            edits: From all pairs, and without each fold.
            detailed: With intervals, figures by concept, and recall at every cut-off; otherwise means alone.

        Raises:
            InvalidResult: NaN or infinite embeddings.
        """
        folds = (self.fold(number, changes, detailed) for number, changes in enumerate(edits.folds))
        return self.together(chain([self.classify(edits.whole)], folds), detailed)

    def classify(self, changes: Changes) -> dict[str, Any]:
        """What the data sets come to under the edit of all pairs. Raises InvalidResult as `measure`."""
        return zero_shot_fields(self._data_sets.classify(changes))

    def fold(self, number: int, changes: Changes, detailed: bool) -> Part:
        """Samples of a fold's pairs, and what stays of its preserved inputs, under the edit that other folds taught.

        Raises:
            InvalidResult: As `measure`.
        """
        embedded, retrieval = self._pairs.embed(changes), self._retrieval[detailed][number]
        found = {} if retrieval is None else _samples(embedded.pairs, self._rows[number], retrieval)
        return found, self._preserved.kept(number, embedded, self._first)

    def together(
        self, measured: Iterator[Any], detailed: bool, hopeless: Callable[[EvalResult, EvalResult], bool] | None = None
    ) -> EvalResult:
        """The figures of one candidate.

        Args:
            measured: What comes of `classify`, then of `fold` for each.
            detailed: As in `measure`.
            hopeless: Told what the data sets come to, and then with them the first fold, and the same of the unedited
                model, whether to leave it at that.

        Returns:
            Of all pairs; where it was hopeless, of none or of the first fold's.
        """
        known = next(measured)
        if hopeless is not None and hopeless(nothing := EvalResult(0, {}, **known), self.baseline):
            return nothing
        parts: list[Part] = []
        for fold, part in enumerate(measured):
            parts.append(part)
            if hopeless is not None and fold == 0 and part[0] and len(self._rows) > 1:
                first = self._result(parts, known, detailed)
                if hopeless(first, self._first_baseline):
                    return first
        return self._result(parts, known, detailed)

    def _result(self, parts: Sequence[Part], known: Mapping[str, Any], detailed: bool) -> EvalResult:
        """From the samples, and what stays of the preservation set, of some folds, and from what came of data sets."""
        kept = torch.cat([kept for _, kept in parts])
        measured = [found for found, _ in parts if found]
        samples = {name: torch.cat([found[name] for found in measured]) for name in measured[0]}  # rows fold by fold
        preserved = kept if len(kept) else None
        fields: dict[str, Any] = {**known, "samples": samples, "preserved": preserved}
        pairs = len(next(iter(samples.values())))
        if detailed:
            fields |= summary(samples, replace(self._whole, pairs=self._whole.pairs[:pairs]), self._seed, preserved)
        else:
            means = samples | ({} if preserved is None else {PRESERVED: preserved})
            fields |= {"pairs": pairs, "figures": {name: _mean(values) for name, values in means.items()}}
        return EvalResult(**fields)

    @cached_property
    def _first_baseline(self) -> EvalResult:
        """The unedited model on the pairs of the first fold alone."""
        pairs = len(self._rows[0])
        samples = {name: values[:pairs] for name, values in self.baseline.samples.items()}
        means = {name: _mean(values) for name, values in samples.items()}
        return replace(self.baseline, pairs=pairs, figures={**self.baseline.figures, **means}, samples=samples)


def _samples(embeddings: Embeddings, rows: torch.Tensor, retrieval: Retrieval) -> dict[str, torch.Tensor]:
    """SafeGround and retrieval of some rows, among all."""
    own = {name: found[rows] for name, found in vars(embeddings).items()}
    return with_means(safeground_samples(**own) | retrieval.samples(vars(embeddings)))


class _Preserved:
    """The preservation set: whether the first result of its captions and images stays the same.

    Candidates are the safe items of the pairs and the preserved ones of the other modality. A result within `TIE` of
    the first one is as good.
    """

    def __init__(self, folds: Folds) -> None:
        self._captions = [(fold, text) for fold, part in enumerate(folds.preserved) for text in part.captions]
        self._images = [(fold, path) for fold, part in enumerate(folds.preserved) for path in part.images]

    def sources(self) -> dict[str, list[Source]]:
        """What to embed, by tower."""
        return {
            "text": [text for _, text in self._captions],
            "vision": [path for _, path in self._images],
        }

    def first_results(self, embedded: Embedded) -> list[torch.Tensor]:
        """The number of the best candidate of each caption, and of each image."""
        return [(ask @ answer.T).argmax(1) for ask, answer, _ in self._sides(embedded)]

    def kept(self, fold: int, embedded: Embedded, first: list[torch.Tensor]) -> torch.Tensor:
        """1 where the first result of a caption or an image of this fold is as good as the best, float64 [n]."""
        if not (self._captions or self._images):
            return torch.empty(0, dtype=torch.float64)
        found = []
        for (ask, answer, folds), best in zip(self._sides(embedded), first, strict=True):
            rows = (folds == fold).nonzero().flatten()
            cosine = ask[rows] @ answer.T
            found.append(cosine.gather(1, best[rows, None])[:, 0] >= cosine.amax(1) - TIE)
        return torch.cat(found).double()

    def _sides(self, embedded: Embedded) -> Iterator[tuple[torch.Tensor, ...]]:
        """Queries, candidates and the queries' folds: of captions, then of images."""
        captions, images = embedded.others["text"], embedded.others["vision"]
        for own, queries, candidates in (
            (self._captions, captions, torch.cat([embedded.safe["vision"], images])),
            (self._images, images, torch.cat([embedded.safe["text"], captions])),
        ):
            yield queries, candidates, torch.tensor([fold for fold, _ in own], dtype=torch.long)


def _measured_pairs(folds: Folds, seed: int) -> tuple[CalibrationSet, list[torch.Tensor]]:
    """The complete quadruples, `MOST_PAIRS` at most, and the rows of each fold among them."""
    total = len(quadruples(folds.together))
    parts = [[pair for pair in part.pairs if pair.has_text and pair.has_image] for part in folds.pairs]
    if total > MOST_PAIRS:
        share = MOST_PAIRS / total
        parts = [random.Random(seed).sample(part, round(share * len(part))) for part in parts]
    ends = torch.tensor([0, *map(len, parts)]).cumsum(0).tolist()
    rows = [torch.arange(first, last) for first, last in pairwise(ends)]
    return replace(folds.pairs[0], pairs=tuple(pair for part in parts for pair in part)), rows


def _mean(values: torch.Tensor) -> tuple[float, float, float]:
    """A mean without its interval: the bounds are NaN, so that no requirement on them is met by mistake."""
    return values.mean().item(), float("nan"), float("nan")
