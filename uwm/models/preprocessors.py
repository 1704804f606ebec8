"""What makes RGB pictures a model's input, apart from the model: another process can hold it, without the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..errors import BadInput
from .described import reason, unusable

Preprocessor = Callable[[list[Image.Image]], torch.Tensor]  # RGB pictures to a model's input, [n, 3, h, w]


@dataclass(frozen=True)
class Transforms:
    """torchvision's transforms, a picture at a time.

    Attributes:
        transform: Of one picture, to [3, h, w].
    """

    transform: Callable[[Image.Image], torch.Tensor]

    def __call__(self, images: list[Image.Image]) -> torch.Tensor:
        return torch.stack([self.transform(image) for image in images])


@dataclass(frozen=True)
class ImageProcessor:
    """transformers' image processor, and what the vision tower takes of it.

    Attributes:
        processor: Makes a batch's pixel values.
        folder: Where it was read from, for messages.
        taken: The last sides of the tower's input, such as [3, h, w].
    """

    processor: Any
    folder: Path | None
    taken: tuple[int, ...]

    def __call__(self, images: list[Image.Image]) -> torch.Tensor:
        """Raises BadInput where the processor fails, or is another model's."""
        return self._fitting(self._made(images)["pixel_values"])

    def _made(self, images: list[Image.Image]) -> Any:
        try:
            return self.processor(images, return_tensors="pt")
        except unusable() as error:
            if "out of memory" in str(error):
                raise
            raise BadInput(f"{self.folder}: the image preprocessor fails on these images ({reason(error)})") from None

    def _fitting(self, pixels: torch.Tensor) -> torch.Tensor:
        """The same images, shown to be of the model's size."""
        given = tuple(pixels.shape[-len(self.taken) :])
        if given != self.taken or pixels.ndim != 1 + max(2, len(self.taken)):
            raise BadInput(
                f"{self.folder}: the image preprocessor makes {list(pixels.shape[1:])} of an image, the vision tower "
                f"takes {list(self.taken)} (config.json); copy the original's preprocessor there"
            )
        return pixels


class FirstTile(ImageProcessor):
    """Where an image is looked at in tiles, the first of them, which is the whole image."""

    def __call__(self, images: list[Image.Image]) -> torch.Tensor:
        pixels = self._made(images)["pixel_values"]
        return self._fitting(torch.stack([each[0] if each.ndim == 4 else each for each in pixels]))


class Patches(ImageProcessor):
    """Of any aspect ratio: [n, patches, 3·p·p + 3], the last columns mask, rows, columns; 3·p·p is what is `taken`."""

    def __call__(self, images: list[Image.Image]) -> torch.Tensor:
        found = self._made(images)
        patches, mask = self._fitting(found["pixel_values"]), found["pixel_attention_mask"][:, :, None]
        sides = found["spatial_shapes"][:, None, :].expand(-1, patches.shape[1], -1)
        return torch.cat([patches, mask.to(patches.dtype), sides.to(patches.dtype)], -1)
