"""How long the stages of a run take, and how much memory."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any


class Clock:
    """Seconds by stage, and the peak memory of the process."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[stage] = round(time.perf_counter() - start, 3)

    def report(self) -> dict[str, Any]:
        """Stage seconds and peak resident memory in MB (None where the system does not tell)."""
        return {"seconds": dict(self._seconds), "peak_memory_mb": peak_memory_mb()}


def peak_memory_mb() -> int | None:
    """Peak resident memory of this process in MB, or None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1 << 20 if sys.platform == "darwin" else 1 << 10)
