"""`uwm compare` as the terminal shows it: tables, plans, mistakes, a real kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from terminal import done, refused
from tiny_comparison import results

SMALL = ("--eval-split", "test", "--methods", "uwm,random", "--masses", "0.05,0.2")


@pytest.fixture
def compared(run_uwm, tiny_hf, tiny_set, tmp_path):
    """Run `uwm compare` on the tiny model and set with more flags, into tmp_path / "out"."""

    def run(*flags):
        return run_uwm("compare", tiny_hf, "--calib", tiny_set, "-o", tmp_path / "out", *SMALL, *flags)

    return run


def test_tables_on_the_terminal(compared, tmp_path):
    code, out, err = compared("--eval-split", "test", "--no-progress")
    assert code == 0
    assert "only 8" not in err
    assert out.startswith("test (8 pairs, 1 seed)\n\n| method ")
    assert [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("| ")] == [
        "method", "none", "uwm", "uwm", "random", "random",
    ]  # fmt: skip
    assert "Zero-shot accuracy was not measured" in out
    assert out.endswith(f"written to {tmp_path / 'out'}\n")


def test_json(compared, tmp_path):
    code, out, _ = compared("--json", "--seeds", "0,1", "-q")
    assert code == 0
    printed = json.loads(out)
    assert printed == json.loads((tmp_path / "out" / "comparison.json").read_text("utf-8"))
    assert printed["settings"]["seeds"] == [0, 1]
    assert printed["settings"]["masses"] == [0.05, 0.2]


def test_a_dry_run_lists_the_runs_and_writes_nothing(compared, tmp_path):
    runs = ["none", "uwm τ 0.05", "uwm τ 0.2", "random τ 0.05", "random τ 0.2"]
    assert done(compared("--dry-run")).splitlines() == [f"to do  {run} seed 0" for run in runs]
    assert not (tmp_path / "out").exists()
    assert compared("-q")[0] == 0
    assert done(compared("--dry-run")).splitlines() == [f"done  {run} seed 0" for run in runs]
    listed = json.loads(done(compared("--dry-run", "--json", "--methods", "magnitude")))
    assert [run["run"] for run in listed["runs"] if not run["done"]] == [
        "magnitude τ 0.05 seed 0",
        "magnitude τ 0.2 seed 0",
    ]


def test_settings_from_a_file(run_uwm, tiny_hf, tiny_set, tmp_path):
    (tmp_path / "compare.toml").write_text(
        f'calib = "{tiny_set}"\neval-split = ["test"]\nmethods = ["uwm, random", "magnitude"]\n'
        f'seeds = [0, 1]\nmasses = "0.1"\noutput = "{tmp_path / "out"}"\n'
    )
    listed = done(run_uwm("compare", tiny_hf, "--config", tmp_path / "compare.toml", "--dry-run")).splitlines()
    assert listed == [
        f"to do  {name} seed {seed}"
        for name in ("none", "uwm τ 0.1", "random τ 0.1", "magnitude τ 0.1")
        for seed in (0, 1)
    ]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--methods", "best"), ["--methods: 'best': no method is called 'best'", "grad-unsafe", "safe-clip"]),
        (("--methods", "random:epochs=1"), ["'random:epochs=1'", "the method random has no such setting"]),
        (("--methods", "mine=nowhere/to/be"), ["nowhere/to/be: no such file or folder"]),
        (("--seeds", "1,one"), ["--seeds", "'1,one': expected numbers with commas between"]),
        (("--seeds", "-1"), ["--seeds -1: expected different numbers from 0"]),
        (("--masses", "0.1,2"), ["mass 2.0"]),
        (("--at-epochs", "1.5"), ["--at-epochs", "expected numbers"]),
        (("--eval-split", "calib"), ["'calib' holds pairs that calibration uses"]),
        (("--zero-shot", "no-such-set"), ["--zero-shot no-such-set"]),
        (("--methods", "safe-clip", "--train-dtype", "int8"), ["int8"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_mistakes(flags, words, compared, tmp_path):
    refused(compared(*flags), 2, *words)
    assert not (tmp_path / "out").exists()


def test_nothing_asked_for_is_a_mistake(run_uwm, tiny_hf, tiny_set):
    refused(run_uwm("compare", tiny_hf, "--calib", tiny_set), 2, "--methods")


def test_killed_for_real_and_continued(compared, tiny_hf, tiny_set, tmp_path):
    arguments = ["compare", tiny_hf, "--calib", tiny_set, *SMALL, "--seeds", "0,1,2", "-q", "-o"]
    start = [sys.executable, "-m", "uwm", *map(str, arguments), str(tmp_path / "killed")]
    process = subprocess.Popen(start, stdout=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    folder = tmp_path / "killed" / "results"
    while process.poll() is None and not (folder.is_dir() and len([*folder.glob("[0-9a-f]*.safetensors")]) >= 2):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len([*folder.glob("[0-9a-f]*.safetensors")]) >= 2
    assert compared("--seeds", "0,1,2", "-q")[0] == 0
    again = subprocess.run(
        start, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert again.returncode == 0, again.stderr
    for path in folder.glob(".uwm-*"):
        path.unlink()  # what the kill left of a file underway
    assert results(tmp_path / "killed") == results(tmp_path / "out")
