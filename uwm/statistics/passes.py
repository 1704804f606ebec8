"""The one pass: pairs go through a model, and every reducer sees the layers that it asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..errors import InvalidResult, NotFinite
from ..models import Model
from ..processes import in_rounds, is_own, several
from ..weights import WeightId
from .batches import DoneBatch, PairBatch, sent
from .hooks import block_module, observe, observe_outputs
from .pooled_token import check_pooled_token
from .products import quick_products
from .room import Room, can_run_out
from .streams import side_by_side

RESIDUAL = "residual"  # slot by which a reducer asks for the residual stream after a block, its output
SAFE, UNSAFE = 0, 1  # the numbers of the sides
NOT_FINITE = "NaN or infinite activations"
PIECE = 16  # pairs that run together on the CPU, which more of them do not make faster

Inputs = tuple[torch.Tensor, torch.Tensor | None]  # of one side: images, or ids and their mask


@dataclass(frozen=True)
class Part:
    """One batch of one tower, after all of its sides have run.

    Attributes:
        tower: ``text``, ``vision``, ``text_2`` …
        first: Number of the batch's first pair among the pairs of this tower.
        embeddings: Not normalised, float32 [pairs, dim]: (safe, unsafe), or (safe,) for a preservation batch; empty
            where no reducer needs them.
        inputs: What went into the tower, each side with its mask: images, or ids and their mask.
    """

    tower: str
    first: int
    embeddings: tuple[torch.Tensor, ...]
    inputs: tuple[tuple[torch.Tensor, torch.Tensor | None], ...] = ()


class Reducer(Protocol):
    """Sums up what it needs of the pass, batch by batch; the result must not depend on the batch size.

    One that has ``needs_embeddings = False`` looks at the layers it asks for only. Where none of a pass needs the
    embeddings, the towers are run no further than the last of these layers. One that has ``padded = True`` wants
    captions as diffusion models read them, see `Model.padded`; then all of the pass get them so. One that has
    ``towers_apart = True`` uses nothing of one tower for another within a batch, on the device: where all of a pass
    have it, the towers run side by side.
    """

    def layers(self, tower: str) -> Sequence[WeightId]:
        """The layers of a tower whose inputs it wants to see; empty for none.

        ``WeightId(tower, block, RESIDUAL)`` asks for the output of a block instead.
        """

    def take(self, weight: WeightId, side: int, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
        """Take in one layer's input for one side of a batch; called inside the hook, safe side first.

        Args:
            weight: One of `layers`.
            side: `SAFE` or `UNSAFE`.
            x: The input [samples, tokens, in]; not to be kept without a copy.
            mask: Which tokens count, 1 or 0, [samples, tokens]; None: all of them.

        Returns:
            What spares the pass the check of the input for NaN: a summary [samples, …], not negative, that is not
            finite for each sample with a counted value that is not; or None.
        """

    def update(self, part: Part) -> None:
        """Take in one batch of one tower, after all of its sides."""


class Shared:
    """Base of reducers whose pass several processes can share: what a batch adds can be sent to the others.

    `take` and `update` call `give` with what they found, and nothing but `join` changes what is summed up. So every
    process joins the same items in the order of one process, and has the same sums bit for bit. An item is small: sums
    or rows of the batch, never a layer's whole input. Where any reducer of a pass is of another kind, every process
    runs all batches.
    """

    SUMS: tuple[str, ...] = ()  # what `join` changes: a run that was stopped goes on with it, see `uwm.statistics.sums`
    _given: list[Any] | None = None  # of the batch that runs, in a shared pass

    def give(self, item: Any) -> None:
        """Join what was found in a batch, at once or when its turn comes."""
        if self._given is None:
            self.join(item)
        else:
            self._given.append(item)

    def join(self, item: Any) -> None:
        """Add what `give` was given: plain objects and tensors."""
        raise NotImplementedError


@torch.no_grad()
def run_pass(
    model: Model,
    batches: Iterable[PairBatch],
    reducers: Sequence[Reducer],
    towers: Iterable[str],
    partly: bool = False,
) -> dict[str, int]:
    """Run the pairs through the towers once and feed every reducer.

    Where no reducer needs the embeddings, a tower ends with the last layer that any reducer asks for, except for the
    first inputs, which show that no layer is called twice. On the CPU such batches run in pieces of `PIECE` pairs, so
    that what is kept of one side until the other has run stays small.

    Several processes share the batches, see `Shared`; every one of them gets the whole result.

    Args:
        model: In eval mode.
        batches: Of any sizes, with both sides or the safe one only.
        reducers: What to feed.
        towers: Which towers to run.
        partly: Some of the towers may get no pairs.

    Returns:
        Tower -> pairs seen.

    Raises:
        InvalidResult: A layer saw no rows, fewer than there were pairs, or values that are not finite; embeddings that
            are not finite, where they were computed.
    """
    wanted = {tower: _listeners(reducers, tower) for tower in sorted(set(towers))}
    seen = dict.fromkeys(wanted, 0)
    shared = [reducer for reducer in reducers if isinstance(reducer, Shared)]
    rooms: dict[str, Room] = {}
    if several() and len(shared) == len(reducers):
        _share(model, batches, shared, wanted, seen, rooms)
    else:
        for batch in batches:
            _run(model, batch, reducers, wanted, seen, rooms)
    for tower, pairs in seen.items():
        if pairs == 0 and not partly:
            name = next(iter(wanted[tower]), f"the {tower} tower")
            raise InvalidResult(f"{name} received no activations: the set has no pairs for the {tower} tower")
    return seen


def is_padded(reducers: Iterable[Any]) -> bool:
    """Whether any of these reducers wants captions as diffusion models read them."""
    return any(getattr(reducer, "padded", False) for reducer in reducers)


Wanted = Mapping[str, dict[WeightId, list[Reducer]]]  # tower -> layer -> who asks for it
Unchecked = tuple[str, str, int, torch.Tensor]  # what is wrong if these [pairs] are not finite; tower; first pair


def _run(
    model: Model,
    batch: PairBatch,
    reducers: Sequence[Any],
    wanted: Wanted,
    seen: dict[str, int],
    rooms: dict[str, Room],
) -> None:
    """Run one batch through the towers, feed every reducer, and count the pairs; one that is done is counted only."""
    if isinstance(batch, DoneBatch):
        return batch.add_to(seen)
    whole = any(getattr(reducer, "needs_embeddings", True) for reducer in reducers)
    padded = is_padded(reducers)
    unchecked: list[Unchecked] = []
    apart = all(getattr(reducer, "towers_apart", False) for reducer in reducers)
    with quick_products(model), side_by_side(model.device, apart) as part_of_batch:
        for tower, listeners in sorted(wanted.items(), reverse=True):  # the long work comes first

            def run(sides: tuple[Inputs, ...], tower: str = tower, listeners: dict = listeners) -> None:
                first, ends = seen[tower], []
                for number, side in enumerate(sides):
                    run_side = _Side(model, tower, listeners, number, first, unchecked, padded)
                    ends.append(run_side(*side, whole or (first, number) == (0, SAFE)))
                part = Part(tower, first, tuple(end for end in ends if end is not None) if whole else (), sides)
                for reducer in reducers:
                    reducer.update(part)

            pieces = [*_pieces(batch.sides(tower), PIECE if not whole and model.device.type == "cpu" else None)]
            room = rooms.setdefault(tower, Room())
            with part_of_batch():
                for sides in _fitting(pieces, room, tower, reducers, model.device, run):
                    seen[tower] += len(sides[0][0])
    _check(unchecked)


def _fitting(
    pieces: list[tuple[Inputs, ...]],
    room: Room,
    tower: str,
    reducers: Sequence[Any],
    device: torch.device,
    run: Callable[[tuple[Inputs, ...]], None],
) -> Iterator[tuple[Inputs, ...]]:
    """Run the pieces of a batch, those that memory has no room for by halves; what has run.

    What a piece gives is kept apart until it has run, where none of its size has: a piece that fails is forgotten.
    Reducers that are not `Shared` cannot forget: then the error is raised.
    """
    shared = [reducer for reducer in reducers if isinstance(reducer, Shared)]
    may_fail = can_run_out(device) and len(shared) == len(reducers)
    while pieces:
        pieces = [part for piece in pieces for part in _pieces(piece, room.most)]
        sides = pieces[0]
        size = len(sides[0][0])
        first = may_fail and size > room.proven and all(len(inputs) == size for inputs, _ in sides)
        try:
            with _kept_apart(shared if first else ()) as items:
                run(sides)
        except RuntimeError as error:
            if not first:
                raise
            room.halve(error, size, tower)
            continue
        room.proven = max(room.proven, size)
        for reducer, given in zip(shared, items, strict=False):  # of none where nothing was kept apart
            for item in given:
                reducer.give(item)
        yield pieces.pop(0)


def _check(found: Sequence[Unchecked]) -> None:
    """Ask once whether all is finite: an accelerator would finish its work before it answered."""
    if found and not torch.isfinite(torch.cat([values for *_, values in found])).all():
        what, tower, first, values = next(each for each in found if not torch.isfinite(each[3]).all())
        raise NotFinite(what, tower, first + int((~torch.isfinite(values)).nonzero()[0]))


def _share(
    model: Model,
    batches: Iterable[PairBatch],
    reducers: Sequence[Shared],
    wanted: Wanted,
    seen: dict[str, int],
    rooms: dict[str, Room],
) -> None:
    """Run this process's batches, and join what all of them gave, in the order of one process."""

    def given() -> Iterator[list[list[Any]] | None]:
        for number, batch in enumerate(batches):
            if is_own(number):
                with _kept_apart(reducers) as items:
                    _run(model, batch, reducers, wanted, seen, rooms)
                yield items
            else:
                batch.add_to(seen)
                yield None

    for parts in in_rounds(given(), "pass"):
        for reducer, items in zip(reducers, parts, strict=True):
            for item in items:
                reducer.join(item)


@contextmanager
def _kept_apart(reducers: Sequence[Shared]) -> Iterator[list[list[Any]]]:
    """What each reducer is given while the body runs, joined to nothing."""
    kept: list[list[Any]] = [[] for _ in reducers]
    before = [reducer._given for reducer in reducers]
    try:
        for reducer, items in zip(reducers, kept, strict=True):
            reducer._given = items
        yield kept
    finally:
        for reducer, given in zip(reducers, before, strict=True):
            reducer._given = given


def _pieces(sides: Sequence[Inputs], size: int | None) -> Iterator[tuple[Inputs, ...]]:
    """The sides of a batch, `size` pairs at a time; all at once without a size, or where the sides are no pairs."""
    lengths = {len(inputs) for inputs, _ in sides}
    if size is None or len(lengths) != 1:
        if sides:
            yield (*sides,)
        return
    for start in range(0, max(lengths), size):
        rows = slice(start, start + size)
        yield tuple((inputs[rows], None if mask is None else mask[rows]) for inputs, mask in sides)


def _listeners(reducers: Sequence[Reducer], tower: str) -> dict[WeightId, list[Reducer]]:
    """Layer -> the reducers that ask for it."""
    found: dict[WeightId, list[Reducer]] = {}
    for reducer in reducers:
        for weight in dict.fromkeys(reducer.layers(tower)):
            found.setdefault(weight, []).append(reducer)
    return found


class _AllSeen(Exception):
    """Ends a tower's work: every listener has got what it asked for."""


class _Side:
    """One side of a batch on its way through a tower; `first` is the number of its first pair."""

    def __init__(
        self,
        model: Model,
        tower: str,
        listeners: Mapping[WeightId, list[Reducer]],
        side: int,
        first: int,
        unchecked: list[Unchecked],
        padded: bool = False,
    ) -> None:
        self._unchecked = unchecked
        self._model, self._tower, self._listeners, self._side, self._first = model, tower, listeners, side, first
        self._padded = padded
        self._samples = 0
        self._rows = dict.fromkeys(listeners, 0)
        self._mask: torch.Tensor | None = None  # of the tokens of a caption, or of the patches of an image
        self._text = False
        self._whole = True

    def __call__(self, inputs: torch.Tensor, mask: torch.Tensor | None, whole: bool) -> torch.Tensor | None:
        """Embeddings, float32 [samples, dim]; the reducers take the layers' inputs meanwhile.

        Without `whole` the tower stops at the last of these layers, and there are none.
        """
        self._whole = whole
        model = self._model
        self._samples, self._text = len(inputs), not inputs.is_floating_point()
        if self._text:
            self._mask = torch.ones_like(inputs) if mask is None else mask
            check_pooled_token(model, inputs, self._mask, self._tower)
            inputs, self._mask = sent(inputs, model.device), sent(self._mask, model.device)
            if self._padded:
                inputs, self._mask = model.padded(inputs, self._mask, self._tower)
        else:
            inputs = sent(inputs, model.device)
            self._mask = model.image_mask(inputs)
        layers = {w: model.owner(w) for w in self._listeners if w.slot != RESIDUAL}
        blocks = {w: block_module(model, w) for w in self._listeners if w.slot == RESIDUAL}
        end = None
        with suppress(_AllSeen), observe(layers, self._take), observe_outputs(blocks, self._take):
            if self._text:
                assert self._mask is not None
                end = model.encode_text(inputs, self._mask, self._tower)
            else:
                end = model.encode_image(inputs.to(model.dtype))
        for weight in self._listeners:
            self._check_rows(weight)
        if end is None:
            return None
        if not torch.isfinite(end.sum(dtype=torch.float32)):
            _check(self._unchecked)  # the layer where it began says more
            self._check_finite(end, f"{self._tower} tower: NaN or infinite embeddings")
        return end.float()

    def _take(self, weight: WeightId, x: torch.Tensor) -> None:
        """Check one layer's input [samples, tokens, in] or [samples, in] and give it to the reducers."""
        self._rows[weight] += len(x)
        self._check_rows(weight)
        mask = self._counted(x.shape[1]) if x.ndim == 3 else None
        x = x if x.ndim == 3 else x[:, None]
        found = [reducer.take(weight, self._side, x, mask) for reducer in self._listeners[weight]]
        summary = next((kept for kept in found if kept is not None), None)
        if summary is None:
            self._check_finite(x, f"{weight}: {NOT_FINITE}")
        elif summary.device.type != "cpu" or not torch.isfinite(summary.sum()):  # what is kept holds memory
            most = summary.flatten(1).amax(1)  # NaN where there is one
            self._unchecked.append((f"{weight}: {NOT_FINITE}", self._tower, self._first, most))
        if not self._whole and all(rows == self._samples for rows in self._rows.values()):
            raise _AllSeen

    def _check_finite(self, values: torch.Tensor, what: str) -> None:
        """Name the first pair with NaN or infinite values [samples, …]; finite sums show that there is none."""
        if torch.isfinite(values.sum(dtype=torch.float32)):
            return
        bad = ~torch.isfinite(values.flatten(1)).all(1)
        if bad.any():
            raise NotFinite(what, self._tower, self._first + int(bad.nonzero()[0]))

    def _check_rows(self, weight: WeightId) -> None:
        rows = self._rows[weight]
        if rows != self._samples:
            raise InvalidResult(
                f"{weight} received {rows} activations for {self._samples} samples; it cannot be scored"
            )

    def _counted(self, tokens: int) -> torch.Tensor | None:
        """Which of a layer's tokens count, [samples, tokens]; a layer after the pooling sees another number."""
        if self._mask is None or (tokens == 1 and self._mask.shape[1] != 1):
            return None
        return self._model.text_mask(self._mask, tokens) if self._text else self._mask
