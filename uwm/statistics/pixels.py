"""Images as batches of pixel values: read and preprocessed ahead of the model, and kept where the model keeps them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from ..errors import BadInput
from ..models import Model
from ..models.kept import Source
from .reading import Found, read_images
from .reading_processes import ReadingProcesses

TOGETHER = 16  # images that a worker preprocesses in one call

Reading = list["Future[Found]"]
Submit = Callable[[Sequence[Source], bool], "Future[Found]"]

logger = logging.getLogger(__name__)


def pixel_batches(model: Model, groups: Iterable[Sequence[Source]], workers: int) -> Iterator[torch.Tensor]:
    """The images of each group as the model takes them, [images, 3, h, w].

    Workers read and preprocess the next group while the caller works on one. How long the caller waited is logged at
    the end.

    Args:
        model: It preprocesses; an image that its `kept` has is not read again.
        groups: Image files, or what reads an image.
        workers: Threads that read and preprocess; for an accelerator as many processes, once it takes long enough.

    Raises:
        BadInput: An image cannot be read.
    """
    made = _made(model, groups, workers)
    if model.device.type != "cpu":
        made = _ahead(made)
    begun, waited, count = time.perf_counter(), 0.0, 0
    while True:
        asked = time.perf_counter()
        pixels = next(made, None)
        waited += time.perf_counter() - asked
        if pixels is None:
            break
        yield pixels
        count += 1
    took = time.perf_counter() - begun
    if count:
        logger.info("the model waited %.1f s for images, %.0f %% of the time", waited, 100 * waited / took)


def _made(model: Model, groups: Iterable[Sequence[Source]], workers: int) -> Iterator[torch.Tensor]:
    """Pixel values of each group, whose images were read while the caller worked on the one before."""
    with _readers(model, workers) as submit:
        for group, reading in _one_ahead(model, groups, submit, workers):
            yield _preprocessed(model, group, _found(reading))


def _ahead(made: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The same, each put together while the caller works on the one before: so an accelerator need not wait."""
    with ThreadPoolExecutor(1) as maker:
        coming = maker.submit(next, made, None)
        while (pixels := coming.result()) is not None:
            coming = maker.submit(next, made, None)
            yield pixels


@contextmanager
def _readers(model: Model, workers: int) -> Iterator[Submit]:
    """Threads that read and prepare; for an accelerator each takes one processor: more would wait for one another.

    There they hand the work to processes as soon as it is worth their start, see `ReadingProcesses`.

    What torch is told in a thread counts for that thread and for all that first ask it later. So these are all begun
    here, and what counts for others is set back before anything is read. On the CPU nothing is set: a program's other
    threads would compute other last digits.
    """
    count = max(1, workers)
    if model.device.type == "cpu":
        with ThreadPoolExecutor(count) as pool:
            yield lambda sources, only_read: pool.submit(read_images, model.preprocess, sources, only_read)
        return
    with ReadingProcesses(model, count) as processes, ThreadPoolExecutor(count) as pool:
        _take_one_processor(pool, count)

        def read(sources: Sequence[Source], only_read: bool) -> Found:
            found = processes.read(sources, only_read)
            return read_images(model.preprocess, sources, only_read) if found is None else found

        yield lambda sources, only_read: pool.submit(read, sources, only_read)


def _take_one_processor(pool: ThreadPoolExecutor, count: int) -> None:
    """Begin so many threads of a pool, each of which takes one processor from then on."""
    own, all_begun = torch.get_num_threads(), threading.Barrier(count + 1)

    def begin() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # a thread takes what is set when it first asks
        all_begun.wait()

    try:
        for _ in range(count):
            pool.submit(begin)
        all_begun.wait()
    except BaseException:  # Ctrl-C, or a thread that the system does not give: those begun must not wait for it
        all_begun.abort()
        raise
    finally:
        torch.set_num_threads(own)


def _one_ahead(
    model: Model, groups: Iterable[Sequence[Source]], submit: Submit, workers: int, checking: bool = False
) -> Iterator[tuple[Sequence[Source], Reading]]:
    """Each group with those of its images that are being read, one group ahead."""
    waiting: list[tuple[Sequence[Source], Reading]] = []
    for group in groups:
        known = () if model.kept is None else model.kept.pixels
        only_read = checking and not (model.kept and model.kept.room > 0 and "vision" in model.modalities)
        missing = [source for source in dict.fromkeys(group) if source not in known]
        size = max(1, min(TOGETHER, -(-len(missing) // max(1, workers))))
        parts = [missing[start : start + size] for start in range(0, len(missing), size)]
        waiting.append((group, [submit(part, only_read) for part in parts]))
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting


def _found(reading: Reading) -> Found:
    """Every image that was read, in order."""
    return {source: one for part in reading for source, one in part.result().items()}


def _preprocessed(
    model: Model, group: Sequence[Source], found: Mapping[Source, torch.Tensor | BadInput]
) -> torch.Tensor:
    """Pixel values of a group, [images, 3, h, w]."""
    made: dict[Source, torch.Tensor] = {}
    for source, one in found.items():
        if isinstance(one, BadInput):
            raise one
        made[source] = one
    _keep(model, made)
    kept = {} if model.kept is None else model.kept.pixels
    return _stacked([made[source] if source in made else kept[source] for source in group], model.device)


def _keep(model: Model, made: Mapping[Source, torch.Tensor]) -> None:
    """Keep images, while the model's `kept` has room."""
    if model.kept is None:
        return
    for source, image in made.items():
        if source not in model.kept.pixels and model.kept.take(image):
            model.kept.pixels[source] = image


def _stacked(images: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """One tensor [images, 3, h, w] on the CPU; for a CUDA device in pinned memory, from where they are sent.

    For an accelerator numpy copies them: after a copy torch's threads stay awake, in the way of those that read.
    """
    if device.type == "cpu":
        return torch.stack([*images])
    whole = torch.empty(len(images), *images[0].shape, dtype=images[0].dtype, pin_memory=device.type == "cuda")
    np.stack([image.numpy() for image in images], out=whole.numpy())
    return whole


def keep_images(model: Model, paths: Sequence[Path], workers: int, group: int = 64) -> list[str]:
    """Read every image, and keep it preprocessed while the model's `kept` has room.

    Returns:
        What is wrong with those that cannot be read, one message each.
    """
    found: list[str] = []
    with _readers(model, workers) as submit:
        parts = [paths[start : start + group] for start in range(0, len(paths), group)]
        for _, reading in _one_ahead(model, parts, submit, workers, checking=True):
            results = _found(reading)
            found += [str(one) for one in results.values() if isinstance(one, BadInput)]
            _keep(model, {path: one for path, one in results.items() if isinstance(one, torch.Tensor) and len(one)})
    return found
