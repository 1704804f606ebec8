"""The towers of a batch at the same time, on a device that can."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import torch


@contextmanager
def side_by_side(device: torch.device, apart: bool) -> Iterator[Callable[[], AbstractContextManager]]:
    """Give the body a context for each part of its work; on CUDA the device does the parts at the same time.

    A model library may wait for the device in the middle of a part, as transformers does to look at a caption's mask.
    On a stream of its own it waits for that part alone, and what was begun before keeps the device busy.

    Args:
        device: Where.
        apart: Whether no part uses what another one makes; after the body everything may. Without it they take turns.
    """
    if not apart or device.type != "cuda":
        yield nullcontext
        return
    main = torch.cuda.current_stream(device)
    begun = main.record_event()
    streams: list[torch.cuda.Stream] = []

    def part() -> AbstractContextManager:
        stream = _stream(device, len(streams))
        streams.append(stream)
        stream.wait_event(begun)
        return torch.cuda.stream(stream)

    try:
        yield part
    finally:
        for stream in streams:
            main.wait_stream(stream)


@cache  # torch keeps the memory that it frees for the stream that had it
def _stream(device: torch.device, number: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
