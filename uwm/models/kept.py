"""What a job keeps of a model's work, because it will be asked for again."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image


class Reads(Protocol):
    """What reads an image that has no file of its own."""

    @property
    def called(self) -> tuple[str | int, ...]:
        """What tells the image from all others of a run."""

    def __call__(self) -> Image.Image:
        """The image, RGB."""


_TAKING = threading.Lock()  # images are made by another thread than outputs
ROOM = 2 << 30  # bytes of images and outputs of blocks, together

Source = str | Path | Reads  # a caption, an image file, or what reads an image
Batch = tuple[Source, ...]


@dataclass
class Kept:
    """Images as the model takes them, and what the unedited model makes of batches. What has no room is made anew.

    Attributes:
        room: Bytes that are left.
        pixels: Image -> pixel values, [3, h, w].
        outputs: Tower, block and batch -> the block's output; that of a block before the first edited one is the same.
        lengths: Caption -> its tokens, see `Model.caption_lengths`.
        embeddings: Tower and batch -> embeddings, not normalised, float32 [batch, dim], on the CPU; kept in any case.
        blocks: Tower -> blocks whose outputs are kept when the unedited model runs, for edits to come.
    """

    room: int = ROOM
    pixels: dict[Source, torch.Tensor] = field(default_factory=dict, repr=False)
    outputs: dict[tuple[str, int, Batch], Any] = field(default_factory=dict, repr=False)
    lengths: dict[str, int] = field(default_factory=dict, repr=False)
    embeddings: dict[tuple[str, Batch], torch.Tensor] = field(default_factory=dict, repr=False)
    blocks: Mapping[str, frozenset[int]] = field(default_factory=dict)

    def beside(self) -> Kept:
        """What another model keeps that takes images in the same form: the same images, all else of its own."""
        return Kept(max(0, ROOM - sum(image.nbytes for image in self.pixels.values())), self.pixels)

    def take(self, *tensors: torch.Tensor) -> bool:
        """Whether these fit; then their bytes are taken."""
        wanted = sum(tensor.nbytes for tensor in tensors)
        with _TAKING:
            if wanted > self.room:
                return False
            self.room -= wanted
            return True
