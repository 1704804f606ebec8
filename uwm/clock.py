"""When a run was, how long its stages take, and how much memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .stages import stage as begin

PROCESS = Path("/proc/self")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as in malloc.h


def now() -> str:
    """``2026-11-26 16:20 UTC``."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())


class Clock:
    """Seconds by stage, and the peak memory of the process.

    Args:
        progress: Is told when a stage begins, see `uwm.stages.stage`.
    """

    def __init__(self, progress: Any = None) -> None:
        self._seconds: dict[str, float] = {}
        self._progress = progress

    @contextlib.contextmanager
    def __call__(self, stage: str, told: str = "", steps: int = 1) -> Iterator[None]:
        """Around a stage; `told` is what it is called to users, where the progress is told by this."""
        if told:
            begin(self._progress, told, steps)
        start = time.perf_counter()
        yield
        self._seconds[stage] = round(time.perf_counter() - start, 3)

    def report(self) -> dict[str, Any]:
        """The time now, stage seconds, and peak resident memory in MB (None where the system does not tell)."""
        return {"date": now(), "seconds": dict(self._seconds), "peak_memory_mb": peak_memory_mb()}


@dataclass
class Cost:
    """What a stage took.

    Attributes:
        seconds: By the wall clock.
        peak_memory_mb: Peak resident memory of the process while it ran; where the system cannot tell that, since the
            process began, or None.
        peak_device_mb: Peak memory of the CUDA device that torch had handed out; None without one.
    """

    seconds: float = 0.0
    peak_memory_mb: int | None = None
    peak_device_mb: int | None = None


@contextlib.contextmanager
def measured() -> Iterator[Cost]:
    """The cost of the body, filled in when it ends; not to be nested, since it resets the peaks."""
    import torch

    cost, cuda = Cost(), torch.cuda.is_available()
    _reset_peak()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    yield cost
    if cuda:
        torch.cuda.synchronize()
        cost.peak_device_mb = torch.cuda.max_memory_allocated() >> 20
    cost.seconds = round(time.perf_counter() - start, 3)
    cost.peak_memory_mb = _peak_since_reset()


def _reset_peak() -> None:
    """Let the peak begin at what is in use: without what is free but not yet given back, which earlier stages left."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with contextlib.suppress(OSError):  # Linux only, and not in every container
        (PROCESS / "clear_refs").write_text("5")


def _peak_since_reset() -> int | None:
    try:
        lines = (PROCESS / "status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) >> 10
    except (OSError, StopIteration):
        return peak_memory_mb()


def reuse_freed_memory(environment: Mapping[str, str]) -> None:
    """Let glibc hand freed memory to the next batch instead of giving it back and asking for it anew.

    Blocks of up to 32 MB, its own limit, are kept, and up to 1 GB of them. It does nothing with another C library, or
    where the user has told glibc by ``MALLOC_…`` variables.
    """
    if not any(name.startswith("MALLOC_") for name in environment):
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL("libc.so.6")
            for parameter, limit in ((M_MMAP_THRESHOLD, 32 << 20), (M_TRIM_THRESHOLD, 1 << 30)):
                library.mallopt(parameter, limit)


def peak_memory_mb() -> int | None:
    """Peak resident memory of this process in MB, or None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1 << 20 if sys.platform == "darwin" else 1 << 10)
