"""Images as a model takes them, read and preprocessed: what a thread or a process that reads does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image

from ..errors import BadInput
from ..images import load_image
from ..models.kept import Source
from ..models.preprocessors import Preprocessor

PIXELS = 4_000_000  # opened images of so many are preprocessed before the next one is opened

Found = dict[Source, "torch.Tensor | BadInput"]  # pixel values [3, h, w], or why it cannot be read


def read_images(preprocess: Preprocessor, sources: Sequence[Source], only_read: bool = False) -> Found:
    """Pixel values of images, [3, h, w] each, empty if they are `only_read`; or why one cannot be read.

    They are preprocessed together, which is quicker than one by one, but no more than `PIXELS` at a time.

    Raises:
        BadInput: They cannot be preprocessed.
    """
    found: Found = {}
    opened: dict[Source, Image.Image] = {}
    for source in sources:
        assert not isinstance(source, str)
        try:
            image = load_image(source) if isinstance(source, Path) else source()
        except BadInput as error:
            found[source] = error
            continue
        found[source] = torch.empty(0)  # holds its place
        if only_read:
            continue
        opened[source] = image
        if sum(one.width * one.height for one in opened.values()) > PIXELS:
            found |= _preprocessed(preprocess, opened)
            opened = {}
    return found | _preprocessed(preprocess, opened)


def _preprocessed(preprocess: Preprocessor, opened: Mapping[Source, Image.Image]) -> Found:
    """Pixel values of opened images, [3, h, w] each; copies, so that one does not hold the memory of all."""
    if not opened:
        return {}
    pixels = preprocess([*opened.values()])
    return {source: own.clone() for source, own in zip(opened, pixels, strict=True)}
