"""Images as batches of pixel values: decoded ahead of the model, and kept where the model keeps them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image

from ..errors import BadInput
from ..images import load_image
from ..models import Model
from ..models.kept import Source

logger = logging.getLogger(__name__)


def pixel_batches(model: Model, groups: Iterable[Sequence[Source]], workers: int) -> Iterator[torch.Tensor]:
    """The images of each group as the model takes them, [images, 3, h, w].

    Workers decode the next group while the caller works on one. How long the caller waited is logged at the end.

    Args:
        model: It preprocesses; an image that its `kept` has is not read again.
        groups: Image files, or what reads an image.
        workers: Threads that decode.

    Raises:
        BadInput: An image cannot be read.
    """
    begun, waited = time.perf_counter(), 0.0
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for group, reading in _one_ahead(model, groups, pool):
            asked = time.perf_counter()
            pixels = _preprocessed(model, group, reading)
            waited += time.perf_counter() - asked
            yield pixels
    if waited:
        took = time.perf_counter() - begun
        logger.info("the model waited %.1f s for images, %.0f %% of the time", waited, 100 * waited / took)


Reading = dict[Source, "Future[Image.Image]"]


def _one_ahead(
    model: Model, groups: Iterable[Sequence[Source]], pool: ThreadPoolExecutor
) -> Iterator[tuple[Sequence[Source], Reading]]:
    """Each group with those of its images that are being read, one group ahead."""
    waiting: list[tuple[Sequence[Source], Reading]] = []
    for group in groups:
        known = () if model.kept is None else model.kept.pixels
        waiting.append((group, {source: pool.submit(_read, source) for source in {*group} if source not in known}))
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting


def _preprocessed(model: Model, group: Sequence[Source], reading: Reading) -> torch.Tensor:
    """Pixel values of a group, [images, 3, h, w]."""
    kept = model.kept
    if kept is None:
        return model.preprocess([reading[source].result() for source in group])
    pixels = model.preprocess([one.result() for one in reading.values()]) if reading else ()
    made = dict(zip(reading, pixels, strict=True))
    for source, image in made.items():
        if source not in kept.pixels and kept.take(image):
            kept.pixels[source] = image.clone()
    return torch.stack([made[source] if source in made else kept.pixels[source] for source in group])


def keep_images(model: Model, paths: Sequence[Path], workers: int, group: int = 64) -> list[str]:
    """Read every image, and keep it preprocessed while the model's `kept` has room.

    Returns:
        What is wrong with those that cannot be read, one message each.
    """
    found: list[str] = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        parts = [paths[start : start + group] for start in range(0, len(paths), group)]
        for part, reading in _one_ahead(model, parts, pool):
            good: Reading = {}
            for path, one in reading.items():
                try:
                    one.result()
                    good[path] = one
                except BadInput as error:
                    found.append(str(error))
            if good and "vision" in model.modalities and model.kept is not None and model.kept.room > 0:
                _preprocessed(model, [path for path in part if path in good], good)
    return found


def _read(source: Source) -> Image.Image:
    assert not isinstance(source, str)
    return load_image(source) if isinstance(source, Path) else source()
