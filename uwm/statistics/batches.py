"""Calibration pairs as preprocessed batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..calibration import CalibrationPair, CalibrationSet, Preservation
from ..models import Model
from ..processes import is_own
from .pixels import pixel_batches
from .pooled_token import check_pooled_token
from .products import quick_products

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
    """A batch that another process works on; it is read, once, only where its inputs are asked for after all.

    Args:
        make: Gives the batch.
        pairs: How many it has, of ``text`` and of ``vision``.
    """

    def __init__(self, make: Callable[[], PairBatch], pairs: Mapping[str, int]) -> None:
        super().__init__()
        vars(self).update(_make=make, _pairs=pairs)  # the base is frozen

    @cached_property
    def _made(self) -> PairBatch:
        made: PairBatch = vars(self)["_make"]()
        return made

    def sides(self, tower: str) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """As `PairBatch.sides`."""
        return self._made.sides(tower)

    def pairs(self, tower: str) -> int:
        """As `PairBatch.pairs`; nothing is read."""
        return vars(self)["_pairs"].get(tower.partition("_")[0], 0)


class DoneBatch(UnmadeBatch):
    """A batch that an earlier run has summed up: it is counted, and never read."""


Made = Callable[[Sequence[Any]], Iterator[PairBatch]]  # from chunks of a set, the batch of each in turn


def share_out(
    chunks: Sequence[Any], make: Made, pairs: Sequence[Mapping[str, int]], done: int = 0
) -> Iterator[PairBatch]:
    """The batches of these chunks, of which those of other processes are not made.

    Args:
        chunks: What each batch is of.
        make: Makes batches in turn; it may read ahead.
        pairs: How many each has, of ``text`` and of ``vision``.
        done: How many of the batches an earlier run has summed up.
    """
    made = make([chunk for number, chunk in enumerate(chunks) if number >= done and is_own(number)])
    for number, chunk in enumerate(chunks):
        if number >= done and is_own(number):
            yield next(made)
        else:
            other = DoneBatch if number < done else UnmadeBatch
            yield other(partial(_only, make, chunk), pairs[number])
    next(made, None)  # its end, where it tells how long the model waited


def _only(make: Made, chunk: Any) -> PairBatch:
    (batch,) = make([chunk])
    return batch


Inputs = dict[str, torch.Tensor]  # fields of `PairBatch`
Read = TypeVar("Read")  # what captions are of
Seen = TypeVar("Seen")  # what images are of


def _together(
    texts: Sequence[Sequence[Read]],
    pictures: Sequence[Sequence[Seen]],
    captions: Callable[[Sequence[Read]], Inputs],
    images: Callable[[Iterable[Sequence[Seen]]], Iterator[Inputs]],
    done: int,
) -> Iterator[PairBatch]:
    """Captions and images side by side, as long as there are both: an accelerator is kept busy by the images' tower.

    Args:
        texts, pictures: What the batches' captions and images are of; they need not be the same pairs.
        captions, images: Make the inputs, those of images ahead.
        done: As in `share_out`.
    """

    def make(chunks: Sequence[tuple[Sequence[Read], Sequence[Seen]]]) -> Iterator[PairBatch]:
        pixels = images([seen for _, seen in chunks if seen])
        for read, seen in chunks:
            yield PairBatch(**(next(pixels) if seen else {}), **(captions(read) if read else {}))
        next(pixels, None)

    chunks = [*zip_longest(texts, pictures, fillvalue=())]
    yield from share_out(chunks, make, [{"text": len(read), "vision": len(seen)} for read, seen in chunks], done)


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
        joint: Of pairs that have both captions and images only, so that both of a batch are of the same pairs; without
            it a batch has the captions and the images of as many pairs, which may be others.
        done: As in `share_out`.
    """

    def captions(pairs: Sequence[CalibrationPair]) -> Inputs:
        safe, unsafe = ([p.safe_text or "" for p in pairs], [p.unsafe_text or "" for p in pairs])
        return _tokens(model, "safe", safe) | _tokens(model, "unsafe", unsafe)

    def images(chunks: Iterable[Sequence[CalibrationPair]]) -> Iterator[Inputs]:
        groups = (_paths([*[p.safe_image for p in pairs], *[p.unsafe_image for p in pairs]]) for pairs in chunks)
        for both in pixel_batches(model, groups, workers):
            safe, unsafe = both.chunk(2)
            yield {"safe_pixel_values": safe, "unsafe_pixel_values": unsafe}

    fit = [p for p in calibration.pairs if (p.has_text and p.has_image) or not joint]
    texts = [p for p in fit if p.has_text] if "text" in towers or joint else []
    pictures = [p for p in fit if p.has_image] if "vision" in towers or joint else []
    yield from _together(_chunks(texts, batch_size), _chunks(pictures, batch_size), captions, images, done)


def preserved_batches(
    model: Model,
    preserve: Preservation,
    *,
    batch_size: int = BATCH_SIZE,
    towers: Iterable[str],
    workers: int = 2,
    done: int = 0,
) -> Iterator[PairBatch]:
    """A preservation set as batches without an unsafe side, of captions and images side by side."""

    def images(chunks: Iterable[Sequence[Path]]) -> Iterator[Inputs]:
        return ({"safe_pixel_values": pixels} for pixels in pixel_batches(model, chunks, workers))

    texts = _chunks(preserve.captions, batch_size) if "text" in towers else []
    pictures = _chunks(preserve.images, batch_size) if "vision" in towers else []
    yield from _together(texts, pictures, partial(_tokens, model, "safe"), images, done)


def _tokens(model: Model, side: str, texts: Sequence[str]) -> Inputs:
    """Ids and mask, [pairs, length] each."""
    ids, mask = model.tokenize([*texts])
    return {f"{side}_input_ids": ids, f"{side}_attention_mask": mask}


def count_batches(calibration: CalibrationSet, batch_size: int, towers: Iterable[str]) -> int:
    """How many batches `pair_batches` gives."""
    sizes = {"text": sum(p.has_text for p in calibration.pairs), "vision": sum(p.has_image for p in calibration.pairs)}
    return max((-(-sizes[tower] // batch_size) for tower in towers), default=0)


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
        with quick_products(model):
            return model.encode_image(sent(inputs, model.device).to(model.dtype)).float()
    mask = torch.ones_like(inputs) if mask is None else mask
    check_pooled_token(model, inputs, mask, "text")
    with quick_products(model):
        return model.encode_text(sent(inputs, model.device), sent(mask, model.device)).float()


def sent(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The same on a device; to CUDA from pinned memory, so that nothing waits until the work before it is done."""
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)
