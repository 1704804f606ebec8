"""The failure of one process ends all: one clear error, and nothing lost."""

from __future__ import annotations

import os
import signal
import time

import pytest
from processes.launching import launch, ours

LOST = "uwm: error: stopped, because another process of this run has ended or the run was cancelled"
MEMORY = "uwm: error: process 1 of 2: out of memory; try a smaller --batch-size, or --device cpu"
SECONDS = 15


@pytest.fixture
def edit(tiny_hf, tiny_set, tmp_path):
    """An edit over an earlier output, to be started with a fault."""
    output = tmp_path / "place" / "out"
    output.mkdir(parents=True)
    (output / "uwm.json").write_text("{}")
    (output / "model.safetensors").write_text("earlier")
    arguments = ["edit", tiny_hf, "--calib", tiny_set, "--batch-size", "3", "--beside", "none", "--overwrite"]

    def start(**environment):
        return launch(2, "-m", "uwm", *arguments, "-o", output, folder=tmp_path, **environment)

    yield start
    assert (output / "model.safetensors").read_text() == "earlier"
    assert [path.name for path in output.parent.iterdir()] == ["out"]  # and nothing half-written


@pytest.mark.parametrize(
    ("fault", "said", "code"),
    [
        ("1:memory", MEMORY, "exitcode  : 4"),
        ("1:kill", LOST, "exitcode  : 4"),
        pytest.param(
            "1:bad", "uwm: error: images/0003.png: cannot be read; mend it", "exitcode  : 2", marks=pytest.mark.slow
        ),
        pytest.param("0:kill", LOST, "exitcode  : 4", marks=pytest.mark.slow),
    ],
)
def test_one_error_is_told(edit, fault, said, code):
    with edit(FAULT=fault) as process:
        told, errors = process.communicate(timeout=200)
    assert process.returncode == 1  # torchrun's own
    assert not told
    (line,) = [line for line in ours(errors) if not line.startswith("uwm: warning")]
    assert line.startswith(said)
    assert code in errors


def test_an_interrupt_ends_all(edit, tmp_path):
    mark = tmp_path / "mark"
    with edit(FAULT="1:wait", MARK=str(mark)) as process:
        until = time.monotonic() + 200
        while not mark.exists() and time.monotonic() < until:
            time.sleep(0.1)
        begun = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=200)
    assert time.monotonic() - begun < SECONDS
    assert [line for line in ours(errors) if line.startswith("uwm: ")] == [
        "uwm: interrupted; nothing was left half-written"
    ]
