"""On a GPU: its own kernels are used and exact, and the edit is the CPU's. Skipped where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from by_processes import read_by_processes

import uwm
from uwm.editing.entries import columns
from uwm.statistics import channel_norms
from uwm.statistics.pixels import pixel_batches

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
METHODS = ("uwm", "log-ratio", "grad-unsafe", "repel", "ablate")


def test_the_kernels_are_used():
    assert channel_norms._kernel() is not None
    assert columns._kernels() is not None


def test_the_kernels_agree_with_float64():
    subprocess.run([sys.executable, Path(__file__).with_name("compare_kernels.py"), "cuda"], check=True, timeout=300)


def test_scores_are_those_of_the_cpu_whatever_the_batch(tiny_hf, tiny_set):
    calib = uwm.read_calibration(tiny_set)
    expected = dict(uwm.score(uwm.load(tiny_hf), calib).tensors)
    model = uwm.load(tiny_hf, device="cuda")
    for pairs in (1, 3, 16):
        found = dict(uwm.score(model, calib, batch_size=pairs).tensors)
        for weight, scores in expected.items():
            torch.testing.assert_close(found[weight], scores, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("processes", [False, True])
def test_images_are_in_pinned_memory_and_those_of_the_cpu(processes, tiny_hf, tiny_set, monkeypatch):
    if processes:
        read_by_processes(monkeypatch)
    paths = [pair.unsafe_image for pair in uwm.read_calibration(tiny_set).pairs]
    (expected,) = pixel_batches(uwm.load(tiny_hf), [paths], 2)
    (found,) = pixel_batches(uwm.load(tiny_hf, device="cuda"), [paths], 2)
    assert found.is_pinned()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("method", METHODS)
def test_edits_are_those_of_the_cpu(method, tiny_hf, tiny_set, tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    same = []
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        command = ["-m", "uwm", "edit", tiny_hf, "--calib", tiny_set, "--method", method, "--beside", "none"]
        told = subprocess.run(
            [sys.executable, *map(str, command), "--device", device, "-o", str(out)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert told.returncode == 0, told.stderr
        same.append(uwm.load(out).module.state_dict())
    for key, value in same[0].items():
        entries = (value - same[1][key]).abs() <= 1e-3 * value.abs().max()
        assert entries.double().mean() > 0.98, key
