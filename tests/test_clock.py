"""What stages cost: seconds, and a peak of memory that begins anew with each."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from uwm import clock
from uwm.clock import measured, peak_memory_mb

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can reset a process's peak")


def test_the_time_is_told_in_utc(monkeypatch):
    monkeypatch.setattr("uwm.clock.time.gmtime", lambda: time.struct_time((2026, 11, 26, 16, 20, 5, 3, 330, 0)))
    assert clock.now() == clock.Clock().report()["date"] == "2026-11-26 16:20 UTC"


def test_seconds_of_the_body():
    with measured() as cost:
        time.sleep(0.05)
    assert 0.05 <= cost.seconds < 5


@LINUX
def test_the_peak_is_that_of_the_body():
    with measured() as large:
        kept = np.ones(40_000_000)  # 320 MB
    del kept
    with measured() as small:
        np.ones(10)
    assert large.peak_memory_mb > small.peak_memory_mb + 250


def test_where_the_peak_cannot_be_reset_it_is_the_processs(monkeypatch, tmp_path):
    monkeypatch.setattr("uwm.clock.PROCESS", tmp_path / "none")
    with measured() as cost:
        pass
    assert cost.peak_memory_mb == peak_memory_mb()


def test_freed_memory_is_kept_for_the_next_batch_unless_the_user_says_otherwise(monkeypatch):
    asked = []
    library = SimpleNamespace(mallopt=lambda *given: asked.append(given) or 1)
    monkeypatch.setattr(clock.ctypes, "CDLL", lambda name: library)
    clock.reuse_freed_memory({"PATH": "/bin"})
    assert asked == [(-3, 32 << 20), (-1, 1 << 30)]
    clock.reuse_freed_memory({"MALLOC_TRIM_THRESHOLD_": "1"})
    assert len(asked) == 2
    monkeypatch.setattr(clock.ctypes, "CDLL", lambda name: SimpleNamespace())  # another C library
    clock.reuse_freed_memory({})
