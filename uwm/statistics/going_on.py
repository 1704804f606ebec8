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
from ..unfinished import Entry, Unfinished
from . import sums

Item = TypeVar("Item")
PART = 1 / 6  # of the pause, after which the end of a pass, or of a set, is kept


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
            self._keep(self._kept, self._last, PART)

    def _keep(self, kept: Unfinished, done: int, part: float) -> None:
        if done <= self.done or not kept.is_due(part):
            return
        try:
            tensors, about = sums.told(self._summed)
        except sums.NotTold:
            self._kept = None  # of a plug-in: its pass begins anew
            return
        kept.put(self._name, Entry(tensors, {"done": done, "sums": about}))


class KeptRows:
    """Embeddings of the batches of a set, in turn; an earlier run may have made the first ones.

    Args:
        model: As it is now; its edited tensors tell its embeddings from those of other edits.
        tower: Which.
        batches: All that are to be embedded.

    Attributes:
        found: The embeddings that are there, [batch, dim] each.
    """

    def __init__(self, model: Model, tower: str, batches: Sequence[Batch]) -> None:
        self._kept = model.unfinished if batches else None
        self._new: list[torch.Tensor] = []
        self._first = 0  # batch of those that are not kept yet
        self.found: list[torch.Tensor] = []
        if self._kept is None:
            return
        self._name = _digest([tower, _edit(model), [[_named(source) for source in batch] for batch in batches]])
        sizes = [len(batch) for batch in batches]
        while (entry := self._kept.get(self._part())) is not None:
            last = self._first + entry.about["batches"]
            self.found += entry.tensors["rows"].split(sizes[self._first : last])
            self._first = last

    def add(self, rows: torch.Tensor) -> None:
        """The next batch, [batch, dim]; of several processes all add it."""
        if self._kept is not None:
            self._new.append(rows)
            if self._kept.is_due():
                self._kept.put(*self._gathered())

    def end(self) -> None:
        """All batches are embedded."""
        if self._kept is not None and self._new:
            small = self._gathered()
            self._kept.put(*small) if self._kept.is_due(PART) else self._kept.later(*small)

    def _gathered(self) -> tuple[str, Entry]:
        entry = Entry({"rows": torch.cat(self._new)}, {"batches": len(self._new)})
        name = self._part()
        self._first, self._new = self._first + len(self._new), []
        return name, entry

    def _part(self) -> str:
        """Named by its first batch: of runs that were stopped, each cuts the batches at other places."""
        return _digest([self._name, self._first])


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
