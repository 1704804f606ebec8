"""Captions and images through one tower: batches of inputs, and their embeddings under whatever edit is in effect."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from ..models import Model
from ..models.kept import Batch, Kept, Source
from ..processes import in_rounds, is_own, own_part
from ..weights import WeightId
from .batches import Progress, embed_inputs
from .going_on import kept_rows
from .hooks import block_module, kept_outputs, skipped
from .last_mlp import FEW, embed_pooled
from .pixels import pixel_batches
from .room import Room, can_run_out

PIECE = 32  # samples that run together on the CPU: the activations of more leave its caches and are slower
LATE = ("norm", "proj", "head.norm", "head.fc1", "head.fc2")  # what follows all blocks

Inputs = tuple[torch.Tensor, torch.Tensor | None]  # pixel values, or tokens with their mask


def in_batches(sources: Sequence[Source], size: int) -> list[Batch]:
    """Captions or images, so many at a time."""
    return [tuple(sources[start : start + size]) for start in range(0, len(sources), size)]


def in_turn(model: Model, sources: Sequence[Source], size: int) -> list[int]:
    """In which order captions are embedded, so many at a time: the short ones first, so that they need little padding.

    Returns:
        Places in `sources`; from the first to the last of images, and of captions in batches below `FEW`.
    """
    if size < FEW or not sources or not isinstance(sources[0], str):
        return [*range(len(sources))]
    known = {} if model.kept is None else model.kept.lengths
    missing = [str(text) for text in dict.fromkeys(sources) if text not in known]
    known |= dict(zip(missing, model.caption_lengths(missing), strict=True)) if missing else {}
    return sorted(range(len(sources)), key=lambda place: known[str(sources[place])])


def inputs_of(model: Model, batches: Iterable[Batch], workers: int) -> Iterator[Inputs]:
    """Each batch as the model takes it; a set is of captions or of images."""
    first, *others = [*batches] or [()]
    if first and isinstance(first[0], str):
        yield from (model.tokenize([str(text) for text in batch]) for batch in (first, *others))
    elif first:
        yield from ((pixels, None) for pixels in pixel_batches(model, (first, *others), workers))


@torch.no_grad()
def embed_sources(
    model: Model,
    tower: str,
    sources: Sequence[Source],
    *,
    batch_size: int,
    workers: int,
    progress: Progress | None = None,
    name: str = "",
) -> torch.Tensor:
    """Embeddings, not normalised, float32 [n, dim], on the CPU, of a model as it is.

    On the CPU a batch holds at most `PIECE` inputs, and captions of about one length are in one, see `in_turn`.
    Where the model keeps its work (`Model.kept`), what an edit leaves as it is, is not run again: a tower without an
    edited tensor, and the blocks before the first edited one. The embeddings are the same bit for bit. Several
    processes share the batches.

    Args:
        model: Patched or not; `Model.edited` says what is edited.
        tower: ``text`` or ``vision``.
        sources: Captions, or images; at least one.
        batch_size, workers, progress: As in `uwm.score`.
        name: What progress calls it.
    """
    size = batch_size if can_run_out(model.device) else min(batch_size, PIECE)
    places, kept = in_turn(model, sources, size), model.kept or Kept(room=0)
    batches = in_batches([sources[place] for place in places], size)
    edited = [weight for weight in model.edited if weight.tower == tower]
    known = {} if edited else kept.embeddings
    missing = [batch for batch in batches if (tower, batch) not in known]
    earlier = kept_rows(model, tower, missing)
    found = dict(zip(missing, earlier.found, strict=False))
    missing = missing[len(found) :]
    own = own_part(missing)
    steps = iter(own if progress is None else progress(own, len(own), name))
    inputs, room = inputs_of(model, own, workers), Room()
    made = (
        _embed(model, kept, tower, next(steps), next(inputs), edited, room).cpu() if is_own(number) else None
        for number in range(len(missing))
    )
    for batch, embedded in zip(missing, in_rounds(made, f"embed {tower}"), strict=True):
        found[batch] = embedded
        earlier.add(embedded)
    earlier.end()
    for ending in (steps, inputs):  # they tell how far it is, and how long the model waited
        next(ending, None)
    if not edited:
        kept.embeddings |= {(tower, batch): rows for batch, rows in found.items()}
    rows = torch.cat([found[batch] if batch in found else known[tower, batch] for batch in batches])
    return torch.empty_like(rows).index_copy_(0, torch.tensor(places), rows)


def _embed(
    model: Model, kept: Kept, tower: str, batch: Batch, inputs: Inputs, edited: Sequence[WeightId], room: Room
) -> torch.Tensor:
    """Embeddings of one batch, [batch, dim]; blocks before the first edited one are not run where their output is."""
    first = first_edited(model, tower, edited) if edited else 0
    output = kept.outputs.get((tower, first - 1, batch))
    if output is not None and room.most is None:
        try:
            with skipped([_block(model, tower, block) for block in range(first)], output):
                return embed_pooled(model, tower, *inputs)
        except RuntimeError as error:
            room.halve(error, len(inputs[0]), tower)
    wanted = kept.blocks.get(tower, frozenset()) if not edited else frozenset({first - 1} if first else ())
    with ExitStack() as stack:
        seen = {
            block: stack.enter_context(kept_outputs(_block(model, tower, block)))
            for block in sorted(wanted)
            if (tower, block, batch) not in kept.outputs
        }
        whole = bool(seen) and max(seen) == model.depth(tower) - 1  # then all of the last block's output is kept
        found = _by_parts(model, tower, inputs, room, whole)
    for block, outputs in seen.items():
        if len(outputs) == 1 and kept.take(*_tensors(outputs[0])):
            kept.outputs[tower, block, batch] = outputs[0]
    return found


def _by_parts(model: Model, tower: str, inputs: Inputs, room: Room, whole: bool) -> torch.Tensor:
    """Embeddings [batch, dim] of as many inputs at a time as memory has room for; `whole`: of every token's work."""
    values, mask = inputs
    rows: list[torch.Tensor] = []
    start = 0
    while start < len(values):
        part = slice(start, None if room.most is None else start + room.most)
        try:
            own = (values[part], None if mask is None else mask[part])
            rows.append(embed_inputs(model, *own) if whole else embed_pooled(model, tower, *own))
        except RuntimeError as error:
            room.halve(error, len(values[part]), tower)
        else:
            start += len(values[part])
    return torch.cat(rows)


def keep_for(model: Model, edits: Iterable[Iterable[WeightId]]) -> None:
    """Let the unedited model keep, when it runs next, the outputs of the blocks that these edits start from."""
    assert model.kept is not None
    blocks: dict[str, set[int]] = {}
    for names in edits:
        for tower in {name.tower for name in names}:
            first = first_edited(model, tower, [name for name in names if name.tower == tower])
            blocks.setdefault(tower, set()).update(range(first)[-1:])
    model.kept.blocks = {tower: frozenset(found) for tower, found in blocks.items()}


def first_edited(model: Model, tower: str, edited: Iterable[WeightId]) -> int:
    """How many blocks come before the first edited tensor; tensors that no block holds come before or after all."""
    depth = model.depth(tower)

    def before(name: WeightId) -> int:
        if name.block is not None:
            return name.block
        return depth if name.slot.removesuffix(".bias") in LATE else 0

    return min(*map(before, edited), depth)


def _block(model: Model, tower: str, block: int) -> nn.Module:
    return block_module(model, WeightId(tower, block, "fc1"))


def _tensors(output: Any) -> tuple[torch.Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)
