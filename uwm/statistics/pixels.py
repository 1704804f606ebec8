"""Images as batches of pixel values: read and preprocessed ahead of the model, and kept where the model keeps them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from ..errors import BadInput
from ..images import load_image
from ..models import Model
from ..models.kept import Source

logger = logging.getLogger(__name__)


def pixel_batches(model: Model, groups: Iterable[Sequence[Source]], workers: int) -> Iterator[torch.Tensor]:
    """The images of each group as the model takes them, [images, 3, h, w].

    Workers read and preprocess the next group while the caller works on one. How long the caller waited is logged at
    the end.

    Args:
        model: It preprocesses; an image that its `kept` has is not read again.
        groups: Image files, or what reads an image.
        workers: Threads that read and preprocess.

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


Reading = dict[Source, "Future[torch.Tensor | BadInput]"]  # pixel values [3, h, w], or why it cannot be read


def _one_ahead(
    model: Model, groups: Iterable[Sequence[Source]], pool: ThreadPoolExecutor, checking: bool = False
) -> Iterator[tuple[Sequence[Source], Reading]]:
    """Each group with those of its images that are being read, one group ahead."""
    waiting: list[tuple[Sequence[Source], Reading]] = []
    for group in groups:
        known = () if model.kept is None else model.kept.pixels
        only_read = checking and not (model.kept and model.kept.room > 0 and "vision" in model.modalities)
        missing = [source for source in dict.fromkeys(group) if source not in known]
        waiting.append((group, {source: pool.submit(_read, model, source, only_read) for source in missing}))
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting


def _preprocessed(model: Model, group: Sequence[Source], reading: Reading) -> torch.Tensor:
    """Pixel values of a group, [images, 3, h, w]."""
    made: dict[Source, torch.Tensor] = {}
    for source, one in reading.items():
        found = one.result()
        if isinstance(found, BadInput):
            raise found
        made[source] = found
    kept = model.kept
    if kept is None:
        return torch.stack([made[source] for source in group])
    for source, image in made.items():
        if source not in kept.pixels and kept.take(image):
            kept.pixels[source] = image
    return torch.stack([made[source] if source in made else kept.pixels[source] for source in group])


def keep_images(model: Model, paths: Sequence[Path], workers: int, group: int = 64) -> list[str]:
    """Read every image, and keep it preprocessed while the model's `kept` has room.

    Returns:
        What is wrong with those that cannot be read, one message each.
    """
    found: list[str] = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        parts = [paths[start : start + group] for start in range(0, len(paths), group)]
        for _, reading in _one_ahead(model, parts, pool, checking=True):
            results = {path: one.result() for path, one in reading.items()}
            found += [str(one) for one in results.values() if isinstance(one, BadInput)]
            good = [path for path, one in results.items() if isinstance(one, torch.Tensor) and len(one)]
            if good:
                _preprocessed(model, good, {path: reading[path] for path in good})
    return found


def _read(model: Model, source: Source, only_read: bool) -> torch.Tensor | BadInput:
    """Pixel values of one image, [3, h, w], empty if it is `only_read`; or why it cannot be read."""
    assert not isinstance(source, str)
    try:
        image = load_image(source) if isinstance(source, Path) else source()
    except BadInput as error:
        return error
    return torch.empty(0) if only_read else model.preprocess([image])[0]
