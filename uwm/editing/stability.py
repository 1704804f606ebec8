"""When enough pairs were seen: the edit from half of them is the edit from all of them."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from ..calibration import CalibrationSet
from ..errors import BadInput, InvalidResult
from ..models import Model
from ..processes import from_first
from ..weights import WeightId
from .changes import AddLowRank, Change
from .editors import Editor, Pairs, Proposal, Statistics
from .making import about

FIRST = 64  # pairs before the first look; before each later one there are twice as many
AUC = "detector_auc"

Changes = Mapping[WeightId, Change]


@dataclass
class UntilStable:
    """Gives pairs to an editor's statistics until its edit stays the same.

    Pairs come in an order drawn with the seed. Whenever twice as many were seen, the edit from all of them is compared
    with that from half of them, see `overlap`. Of several processes the first one decides, since a float may differ in
    its last digit on another machine.

    Attributes:
        model: Unedited.
        editor, settings, seed: The editor, and how it edits.
        wanted: How much the two must agree, between 0 and 1.
        curve: What was found: ``pairs`` seen, and ``overlap``, None where there was no edit to compare yet.
        told: What the editor is told of the pairs seen so far.
    """

    model: Model
    editor: Editor
    settings: Any
    seed: int
    wanted: float
    curve: list[dict[str, Any]] = field(default_factory=list)
    _concepts: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def pairs(self, calibration: CalibrationSet) -> Pairs:
        """What the editor is told: the modalities of all pairs, and the concepts of those seen, once they are."""
        return Pairs(about(calibration).modalities, self._concepts)

    def parts(self, calibration: CalibrationSet, statistics: Statistics) -> Iterator[CalibrationSet]:
        """The pairs in parts, each to be fed before the next is asked for; ends where the edit stays the same."""
        order = [*calibration.pairs]
        random.Random(self.seed).shuffle(order)
        before, done = None, 0
        while done < len(order):
            first, done = done, min(len(order), max(FIRST, 2 * done))
            self._concepts |= about(replace(calibration, pairs=tuple(order[:done]))).concepts
            yield replace(calibration, pairs=tuple(order[first:done]))
            if done < max(FIRST, 2 * first):
                return  # too few were left for another look
            found = self._edit(statistics)
            share = from_first(partial(_share, before, found), "how stable the edit is")
            self.curve.append({"pairs": done, "overlap": share})
            if share is not None and share >= self.wanted:
                return
            before = found

    def _edit(self, statistics: Statistics) -> Proposal | None:
        """The edit from what was seen; None where there is none yet, of too few pairs for a detector and the like.

        It is made of a copy, since statistics that an edit was made of may take no more pairs.
        """
        seen = copy.deepcopy(statistics, {id(self.model): self.model, id(self.editor): self.editor})
        try:
            return self.editor.edit(self.model, seen, self.settings, self.seed)
        except (BadInput, InvalidResult):
            return None


def _share(before: Proposal | None, found: Proposal | None) -> float | None:
    """`overlap`; None where either edit is missing."""
    return None if before is None or found is None else overlap(before, found)


def check_share(wanted: float | None) -> None:
    """Refuse what is no share. Raises BadInput."""
    if wanted is not None and not 0 < wanted <= 1:
        raise BadInput(f"--until-stable {wanted}: expected a share between 0 and 1, such as 0.98")


def overlap(half: Proposal, whole: Proposal) -> float:
    """How much two edits agree, 0 to 1.

    Of edits with a detector: 1 less what its AUC on held-out folds has risen by, of the tower where that is most.
    Otherwise, of changes that touch some entries: the Jaccard overlap of these entries, of all tensors together. Where
    matrices are added: the cosine of all that is added.
    """
    rises = [
        sum(found[key] - before[key] for key in found if key in before and key.startswith(AUC)) / max(1, len(aucs))
        for before, found in zip(_towers(half), _towers(whole), strict=True)
        if (aucs := [key for key in found if key in before and key.startswith(AUC)])
    ]
    if rises:
        return 1 - max(0.0, *rises)
    if any(isinstance(change, AddLowRank) for change in (*half.changes.values(), *whole.changes.values())):
        return _cosine(half.changes, whole.changes)
    return _jaccard(half.changes, whole.changes)


def _towers(proposal: Proposal) -> list[dict[str, Any]]:
    found = proposal.report.get("towers", {})
    return [found[tower] for tower in sorted(found)]


def _jaccard(half: Changes, whole: Changes) -> float:
    common = every = 0
    for name in {*half, *whole}:
        first, second = (_touched(changes, name) for changes in (half, whole))
        both = len(np.intersect1d(first, second, assume_unique=True))
        common += both
        every += len(first) + len(second) - both
    return common / every if every else 1.0


def _touched(changes: Changes, name: WeightId) -> np.ndarray:
    change = changes.get(name)
    found = None if change is None else change.touched()
    return np.empty(0, np.int64) if found is None else found


def _cosine(half: Changes, whole: Changes) -> float:
    """Of the added matrices, as one vector each."""
    pairs = [(half.get(name), whole.get(name)) for name in sorted({*half, *whole})]  # sums of floats have an order
    own = [sum(_product(side[n], side[n]) for side in pairs) for n in (0, 1)]
    length = math.sqrt(own[0] * own[1])
    return sum(_product(first, second) for first, second in pairs) / length if length else 1.0


def _product(first: Change | None, second: Change | None) -> float:
    """The Frobenius product of two added matrices; 0 where either is another kind of change."""
    if not (isinstance(first, AddLowRank) and isinstance(second, AddLowRank)):
        return 0.0
    return float(((first.left.T @ second.left) * (first.right.T @ second.right)).sum())
