"""Cross-validation over groups of pairs: folds that share nothing, and the statistics without each of them."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..calibration import CalibrationSet, Preservation, demand_signal
from ..calibration.groups import CAPTION, IMAGE, Item, connected, same_caption
from ..editing.editors import Editor, Statistics
from ..editing.making import about
from ..errors import BadInput
from ..models import Model
from ..statistics.batches import PairBatch, Progress, count_batches, pair_batches, preserved_batches
from ..statistics.going_on import KeptPass
from ..statistics.passes import Reducer, is_padded, run_pass

FOLDS = 3  # each takes the statistics of two thirds of the pairs, and a pass for editors that score every entry


@dataclass(frozen=True)
class Folds:
    """What is learnt from in parts that share no caption and no image.

    Attributes:
        pairs: The pairs of each fold.
        preserved: The captions and images of the preservation set in each fold; those of pairs are where the pair is.
    """

    pairs: tuple[CalibrationSet, ...]
    preserved: tuple[Preservation, ...]

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def together(self) -> CalibrationSet:
        """All pairs, fold by fold."""
        return self.others(None)

    def others(self, fold: int | None) -> CalibrationSet:
        """The pairs of the other folds, fold by fold; of all for None."""
        parts = [self.pairs[number] for number in self.without(fold)]
        return replace(self.pairs[0], pairs=tuple(pair for part in parts for pair in part.pairs))

    def without(self, fold: int | None) -> tuple[int, ...]:
        """The numbers of the other folds; of all for None."""
        return tuple(number for number in range(len(self)) if number != fold)


def draw_folds(calibration: CalibrationSet, preserve: Preservation | None, seed: int, count: int = FOLDS) -> Folds:
    """Folds of about equal size, drawn with the seed: connected pairs stay together, see `CalibrationSet.holdout`.

    Raises:
        BadInput: All pairs are connected by captions or images that they share.
    """
    items = calibration.items()
    groups = connected(items)
    sizes = Counter(groups)
    if len(sizes) < 2:
        raise BadInput(
            f"{calibration.root}: all {len(calibration)} pairs are connected by captions or images that they share, so "
            "no fold can be held out to choose settings on; give the pairs captions and images of their own"
        )
    order = sorted(sizes)
    random.Random(seed).shuffle(order)
    loads = [0] * min(count, len(sizes))
    fold_of: dict[int, int] = {}
    for group in sorted(order, key=lambda group: -sizes[group]):
        fold_of[group] = loads.index(min(loads))
        loads[fold_of[group]] += sizes[group]
    place = {item: fold_of[group] for group, own in zip(groups, items, strict=True) for item in own}
    parts = [
        tuple(pair for pair, group in zip(calibration.pairs, groups, strict=True) if fold_of[group] == fold)
        for fold in range(len(loads))
    ]
    kept = _preserved(preserve, calibration, place, seed, len(loads))
    return Folds(tuple(replace(calibration, pairs=part) for part in parts), kept)


def _preserved(
    preserve: Preservation | None, calibration: CalibrationSet, place: dict[Item, int], seed: int, count: int
) -> tuple[Preservation, ...]:
    """The preservation set in folds."""

    def fold(item: Item) -> int:
        drawn = hashlib.sha256(f"{seed} {item}".encode()).digest()
        return place.get(item, int.from_bytes(drawn[:8], "big") % count)

    whole = preserve or Preservation()
    captions = [(fold((CAPTION, same_caption(text))), text) for text in whole.captions]
    images = [(fold((IMAGE, calibration.hashed(path))), path) for path in whole.images]
    return tuple(
        Preservation(
            tuple(text for number, text in captions if number == part),
            tuple(path for number, path in images if number == part),
        )
        for part in range(count)
    )


class Profile:
    """Statistics of an editor, of all pairs and without each fold, from one pass.

    Args:
        model: Unedited.
        folds: What is learnt from.
        batch_size, workers, progress: As in `uwm.score`.
    """

    def __init__(
        self, model: Model, folds: Folds, *, batch_size: int, workers: int, progress: Progress | None = None
    ) -> None:
        self._model, self._folds, self._progress = model, folds, progress
        self._reading: dict[str, Any] = {"batch_size": batch_size, "workers": workers}
        self._found: dict[Any, list[Statistics]] = {}

    def __len__(self) -> int:
        """Of folds."""
        return len(self._folds)

    @property
    def known(self) -> frozenset[Any]:
        """What `Editor.measured` gives of the statistics that are there."""
        return frozenset(self._found)

    def statistics(self, editor: Editor, settings: Any) -> list[Statistics]:
        """Of all pairs, then without each fold. Raises BadInput where the model or the pairs lack what it needs."""
        self.gather([(editor, settings)])
        return self._found[editor.measured(settings)]

    def check(self, editor: Editor, settings: Any) -> None:
        """Refuse an editor that the model or the pairs lack something for, before the pass. Raises BadInput."""
        self._unfed(editor, settings)

    def gather(self, editors: Sequence[tuple[Editor, Any]]) -> None:
        """Make the statistics of several editors together; those that are there are not made anew."""
        asked = {e.measured(s): self._unfed(e, s) for e, s in editors if e.measured(s) not in self._found}
        together: dict[Any, list[list[Statistics]]] = {}
        for number, statistics in enumerate(asked.values()):
            alone = statistics[0].joint or is_padded(statistics[0].reducers.values())
            together.setdefault((number if alone else -1, statistics[0].towers), []).append(statistics)
        for (_, towers), group in together.items():
            demand_signal(self._model, self._folds.together, sorted({t.partition("_")[0] for t in towers}))
            self._apart(group[0]) if group[0][0].joint else self._at_once(group, towers)
        self._found |= asked

    def _unfed(self, editor: Editor, settings: Any) -> list[Statistics]:
        """Of all pairs, and without each fold."""
        told = [about(self._folds.others(fold)) for fold in (None, *range(len(self._folds)))]
        return [editor.statistics(self._model, pairs, settings) for pairs in told]

    def _at_once(self, group: list[list[Statistics]], towers: Sequence[str]) -> None:
        """One pass: the pairs of a fold feed all statistics but those without it."""
        seen = [dict.fromkeys(towers, 0) for _ in group[0]]
        for number in range(len(self._folds)):
            fed = [row for row in range(len(group[0])) if row != number + 1]
            learning = [statistics[row] for statistics in group for row in fed]
            reducers = [reducer for statistics in learning for reducer in statistics.reducers.values()]
            pairs = KeptPass(self._model, ["fold", number, towers], reducers)
            batches = pairs.over(self._batches(number, towers, pairs.done))
            found = run_pass(self._model, self._shown(batches, number, towers), reducers, towers, partly=True)
            pairs.end()
            for row in fed:
                seen[row] = {tower: seen[row][tower] + found[tower] for tower in towers}
            preserving = [reducer for statistics in learning for reducer in statistics.preserve.values()]
            if preserving:
                self._preserve(number, preserving, towers)
        for statistics in group:
            for row, made in enumerate(statistics):
                made.pairs = seen[row]

    def _preserve(self, number: int, reducers: Sequence[Reducer], towers: Sequence[str]) -> None:
        kept = KeptPass(self._model, ["preserved fold", number, towers], reducers)
        preserved, modalities = self._folds.preserved[number], _modalities(towers)
        batches = preserved_batches(self._model, preserved, towers=modalities, done=kept.done, **self._reading)
        run_pass(self._model, kept.over(batches), reducers, towers, partly=True)
        kept.end()

    def _batches(self, fold: int, towers: Sequence[str], done: int) -> Iterator[PairBatch]:
        pairs = self._folds.pairs[fold]
        return pair_batches(self._model, pairs, towers=_modalities(towers), done=done, **self._reading)

    def _shown(self, batches: Iterable[PairBatch], fold: int, towers: Sequence[str]) -> Iterable[PairBatch]:
        if self._progress is None:
            return batches
        total = count_batches(self._folds.pairs[fold], self._reading["batch_size"], _modalities(towers))
        return self._progress(batches, total, f"profile, part {fold + 1} of {len(self._folds)}")

    def _apart(self, statistics: list[Statistics]) -> None:
        """A pass for each, of an editor that needs all of its pairs in one."""
        for fold, made in zip((None, *range(len(self._folds))), statistics, strict=True):
            towers, pairs = _modalities(made.towers), self._folds.others(fold)
            kept = KeptPass(self._model, ["without fold", fold, towers], made.summed())
            batches = pair_batches(self._model, pairs, towers=towers, joint=True, done=kept.done, **self._reading)
            made.feed(self._model, kept.over(batches))
            kept.end()


def _modalities(towers: Sequence[str]) -> list[str]:
    return sorted({tower.partition("_")[0] for tower in towers})
