"""Calibration pairs as preprocessed batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..calibration import CalibrationPair, CalibrationSet, Preservation
from ..models import Model
from ..processes import is_own
from .pixels import pixel_batches
from .pooled_token import check_pooled_token

BATCH_SIZE = 64
Item = TypeVar("Item")
Progress = Callable[[Iterable, int, str], Iterable]  # wraps an iterable of known length, as tqdm does


@dataclass(frozen=True)
class PairBatch:
    """Preprocessed tensors of some pairs; a missing modality is None.

    A preservation batch has safe inputs without unsafe partners: its unsafe fields are None.
    Pixel values are [pairs, 3, h, w], input ids and masks [pairs, length], mask 1 from the start to the end token.
    """

    safe_pixel_values: torch.Tensor | None = None
    unsafe_pixel_values: torch.Tensor | None = None
    safe_input_ids: torch.Tensor | None = None
    safe_attention_mask: torch.Tensor | None = None
    unsafe_input_ids: torch.Tensor | None = None
    unsafe_attention_mask: torch.Tensor | None = None

    def sides(self, tower: str) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """The inputs of one tower, each with its mask: safe and unsafe, or safe only; empty without the modality."""
        sides: list[tuple[torch.Tensor | None, torch.Tensor | None]]
        if tower.startswith("vision"):
            sides = [(self.safe_pixel_values, None), (self.unsafe_pixel_values, None)]
        else:
            sides = [
                (self.safe_input_ids, self.safe_attention_mask),
                (self.unsafe_input_ids, self.unsafe_attention_mask),
            ]
        there = [(inputs, mask) for inputs, mask in sides if inputs is not None]
        return there if sides[0][0] is not None else []

    def pairs(self, tower: str) -> int:
        """How many pairs a tower gets."""
        sides = self.sides(tower)
        return len(sides[0][0]) if sides else 0

    def add_to(self, seen: dict[str, int]) -> None:
        """Count its pairs, tower by tower."""
        for tower in seen:
            seen[tower] += self.pairs(tower)


class UnmadeBatch(PairBatch):
    """A batch that another process works on; it is read only where its inputs are asked for after all.

    Args:
        make: Gives the batch.
        pairs: How many it has.
        modalities: Of ``text`` and ``vision``, those that it has.
    """

    def __init__(self, make: Callable[[], PairBatch], pairs: int, modalities: Sequence[str]) -> None:
        super().__init__()
        vars(self).update(_make=make, _pairs=pairs, _modalities=modalities)  # the base is frozen

    def sides(self, tower: str) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """As `PairBatch.sides`."""
        made: PairBatch = vars(self)["_make"]()
        return made.sides(tower)

    def pairs(self, tower: str) -> int:
        """As `PairBatch.pairs`; nothing is read."""
        return vars(self)["_pairs"] if tower.partition("_")[0] in vars(self)["_modalities"] else 0


class DoneBatch(UnmadeBatch):
    """A batch that an earlier run has summed up: it is counted, and never read."""


Made = Callable[[Sequence[Sequence[Any]]], Iterator[PairBatch]]  # from chunks of a set, the batch of each in turn


def share_out(
    chunks: Sequence[Sequence[Any]], make: Made, modalities: Sequence[str], first: int = 0, done: int = 0
) -> Iterator[PairBatch]:
    """The batches of these chunks, of which those of other processes are not made.

    Args:
        chunks: What each batch is of.
        make: Makes batches in turn; it may read ahead.
        modalities: What the batches have, of ``text`` and ``vision``.
        first: Number of the first of these batches among all.
        done: How many of all an earlier run has summed up.
    """
    numbered = [*enumerate(chunks, first)]
    made = make([chunk for number, chunk in numbered if number >= done and is_own(number)])
    for number, chunk in numbered:
        if number >= done and is_own(number):
            yield next(made)
        else:
            other = DoneBatch if number < done else UnmadeBatch
            yield other(partial(_only, make, chunk), len(chunk), modalities)
    next(made, None)  # its end, where it tells how long the model waited


def _only(make: Made, chunk: Sequence[Any]) -> PairBatch:
    (batch,) = make([chunk])
    return batch


def pair_batches(
    model: Model,
    calibration: CalibrationSet,
    *,
    batch_size: int = BATCH_SIZE,
    towers: Iterable[str],
    workers: int = 2,
    joint: bool = False,
    done: int = 0,
) -> Iterator[PairBatch]:
    """The set as preprocessed batches.

    Args:
        model: Tokenizes and preprocesses.
        calibration: The pairs.
        batch_size: Pairs at a time.
        towers: Whose inputs are wanted.
        workers: Threads that read pictures.
        joint: Captions and pictures together, of pairs that have both; without it first the captions of all pairs
            that have them, then the pictures.
        done: As in `share_out`.
    """

    def captions(chunks: Sequence[Sequence[CalibrationPair]]) -> Iterator[PairBatch]:
        return (PairBatch(None, None, *_tokens(model, pairs)) for pairs in chunks)

    def images(chunks: Sequence[Sequence[CalibrationPair]]) -> Iterator[PairBatch]:
        return (PairBatch(*pixels) for pixels in _pixels(model, chunks, workers))

    def both(chunks: Sequence[Sequence[CalibrationPair]]) -> Iterator[PairBatch]:
        parts = zip(chunks, _pixels(model, chunks, workers), strict=True)
        return (PairBatch(*pixels, *_tokens(model, pairs)) for pairs, pixels in parts)

    if joint:
        whole = [p for p in calibration.pairs if p.has_text and p.has_image]
        yield from share_out(_chunks(whole, batch_size), both, ("text", "vision"), done=done)
        return
    texts = _chunks([p for p in calibration.pairs if p.has_text], batch_size) if "text" in towers else []
    yield from share_out(texts, captions, ("text",), done=done)
    if "vision" in towers:
        pictures = _chunks([p for p in calibration.pairs if p.has_image], batch_size)
        yield from share_out(pictures, images, ("vision",), first=len(texts), done=done)


def preserved_batches(
    model: Model,
    preserve: Preservation,
    *,
    batch_size: int = BATCH_SIZE,
    towers: Iterable[str],
    workers: int = 2,
    done: int = 0,
) -> Iterator[PairBatch]:
    """A preservation set as batches without an unsafe side: first the captions, then the images."""

    def captions(chunks: Sequence[Sequence[str]]) -> Iterator[PairBatch]:
        tokens = (model.tokenize([*texts]) for texts in chunks)
        return (PairBatch(safe_input_ids=ids, safe_attention_mask=mask) for ids, mask in tokens)

    def images(chunks: Sequence[Sequence[Path]]) -> Iterator[PairBatch]:
        return (PairBatch(safe_pixel_values=pixels) for pixels in pixel_batches(model, chunks, workers))

    texts = _chunks(preserve.captions, batch_size) if "text" in towers else []
    yield from share_out(texts, captions, ("text",), done=done)
    if "vision" in towers:
        chunks = _chunks(preserve.images, batch_size)
        yield from share_out(chunks, images, ("vision",), first=len(texts), done=done)


def _tokens(model: Model, pairs: Sequence[CalibrationPair]) -> tuple[torch.Tensor, ...]:
    """Safe ids and mask, unsafe ids and mask, [pairs, length] each."""
    return (*model.tokenize([p.safe_text or "" for p in pairs]), *model.tokenize([p.unsafe_text or "" for p in pairs]))


def _pixels(
    model: Model, chunks: Iterable[Sequence[CalibrationPair]], workers: int
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Safe and unsafe pixel values of each chunk, [pairs, 3, h, w] each."""
    groups = (_paths([*[p.safe_image for p in pairs], *[p.unsafe_image for p in pairs]]) for pairs in chunks)
    yield from (both.chunk(2) for both in pixel_batches(model, groups, workers))


def count_batches(calibration: CalibrationSet, batch_size: int, towers: Iterable[str]) -> int:
    """How many batches `pair_batches` gives."""
    sizes = {"text": sum(p.has_text for p in calibration.pairs), "vision": sum(p.has_image for p in calibration.pairs)}
    return sum(-(-sizes[tower] // batch_size) for tower in towers)


def _paths(side: list[Path | None]) -> list[Path]:
    return [path for path in side if path is not None]


def _chunks(items: Sequence[Item], size: int) -> list[list[Item]]:
    return [[*items[start : start + size]] for start in range(0, len(items), size)]


def embed_inputs(model: Model, inputs: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Embeddings [pairs, dim] in float32: of images without a mask, of tokens with one.

    Raises:
        BadInput: Captions are read at another token than their last, see `check_pooled_token`.
    """
    if inputs.is_floating_point():
        return model.encode_image(sent(inputs, model.device).to(model.dtype)).float()
    mask = torch.ones_like(inputs) if mask is None else mask
    check_pooled_token(model, inputs, mask, "text")
    return model.encode_text(sent(inputs, model.device), sent(mask, model.device)).float()


def sent(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The same on a device; to CUDA from pinned memory, so that nothing waits until the work before it is done."""
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)
