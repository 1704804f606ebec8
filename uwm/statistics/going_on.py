"""Passes and embeddings that go on where an earlier, stopped run of the same left them (see `uwm.unfinished`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..checkpoint.dtypes import Bits
from ..models import Model
from ..models.kept import Batch, Source
from ..processes import count_of_processes
from ..unfinished import SOON, Entry, KeptBatches, Unfinished
from . import sums

Item = TypeVar("Item")


class KeptPass:
    """One pass over batches, whose first ones an earlier run may have done.

    Args:
        model: It knows where the run keeps its work.
        about: JSON that tells this pass from the others of the run.
        summed: What the pass feeds, just made or fed by earlier passes of the run.

    Attributes:
        done: How many batches `summed` has seen already.
    """

    def __init__(self, model: Model, about: Any, summed: Sequence[Any]) -> None:
        self.done = 0
        self._summed = summed
        self._kept = model.unfinished if sums.can_be_told(summed) else None
        self._last = 0
        if self._kept is None:
            return
        self._name = _digest([self._kept.next_number(), about, sums.outline([*summed])])
        found = self._kept.get(self._name)
        if found is not None:
            sums.restore(summed, found.tensors, found.about["sums"], model.device)
            self.done = found.about["done"]

    def over(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The batches as they are; what was summed up is kept now and then, before another one is given."""
        for batch in batches:
            if self._kept is not None and self._last % count_of_processes() == 0:  # all have joined what came before
                self._keep(self._kept, self._last, 1.0)
            yield batch
            self._last += 1

    def end(self) -> None:
        """All batches are summed up."""
        if self._kept is not None:
            self._keep(self._kept, self._last, SOON)

    def _keep(self, kept: Unfinished, done: int, part: float) -> None:
        if done <= self.done or not kept.is_due(part):
            return
        try:
            tensors, about = sums.told(self._summed)
        except sums.NotTold:
            self._kept = None  # of a plug-in: its pass begins anew
            return
        kept.put(self._name, Entry(tensors, {"done": done, "sums": about}))


def kept_rows(model: Model, tower: str, batches: Sequence[Batch]) -> KeptBatches[torch.Tensor]:
    """Embeddings of the batches of a set, [batch, dim] each, of which an earlier run may have made the first ones.

    Args:
        model: As it is now; its edited tensors tell its embeddings from those of other edits.
        tower: Which.
        batches: All that are to be embedded.
    """
    kept = model.unfinished if batches else None
    sizes = [len(batch) for batch in batches]

    def pack(rows: Sequence[torch.Tensor]) -> Entry:
        return Entry({"rows": torch.cat([*rows])}, len(rows))

    def unpack(entry: Entry, first: int) -> Sequence[torch.Tensor]:
        return entry.tensors["rows"].split(sizes[first : first + entry.about])

    named = [] if kept is None else [tower, _edit(model), [[_named(source) for source in batch] for batch in batches]]
    return KeptBatches(kept, _digest(named), pack, unpack)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _edit(model: Model) -> list[Any]:
    """The tensors that are edited, with a hash of each."""
    edited = sorted(model.edited)
    return [[str(name), hashlib.sha256(Bits.of(model.parameter(name)).array.data).hexdigest()] for name in edited]


def _named(source: Source) -> Any:
    """A caption, the path of an image, or what a data set calls its picture; what they hold is in the run's key."""
    if isinstance(source, str):
        return source
    return ["file", str(source)] if isinstance(source, Path) else ["read", *source.called]
