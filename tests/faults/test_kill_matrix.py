"""Verbs that are killed, that run out of disk, and of which two run at once: a few trials of `kill_matrix.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from faults import kill_matrix
from faults.kill_matrix import FAULTS, Ended, Ground, Trial, Wrong
from faults.outputs_of_trials import KEEPING, VERBS, bytes_of, result_of

from uwm.errors import KEPT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def matrix(*flags):
    """The script's exit code and the lines that it prints."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(kill_matrix.__file__)), *map(str, flags)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, [line for line in done.stdout.splitlines() if " as it should be" in line], done


def shown(code, lines, done, trials):
    assert code == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in lines] == [*VERBS] * (len(FAULTS) - 1) + [*KEEPING]
    assert all(f"{trials} as it should be, 0 not" in line for line in lines)


def test_f67_f68_f72_every_verb_survives_a_kill_a_full_disk_and_itself():
    shown(*matrix("--trials", 1), 1)


@pytest.mark.slow
def test_f67_f68_f72_every_verb_survives_twenty_of_each():
    shown(*matrix("--trials", 20, "--seed", 1000), 20)


# ---------------------------------------------------------------- the matrix itself


@pytest.fixture
def trial(tmp_path):
    """A trial of `score` without a model: an earlier output of one file, and another one that is new."""
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs" / "x").write_text("input")
    (tmp_path / "earlier").write_text("old")
    (tmp_path / "place").mkdir()
    ground = Ground(tmp_path, tmp_path / "inputs", bytes_of(tmp_path / "inputs"))
    ground.earlier["score"], ground.whole["score"] = tmp_path / "earlier", {"": b"new"}
    ground.seconds["score"] = 1.0

    class Replacing:
        def random(self):
            return 0.3  # an earlier output, and a warm cache

    return Trial(ground, VERBS["score"], tmp_path / "place", Replacing())


def test_an_earlier_or_a_new_output_is_as_it_should_be(trial):
    trial.check_kept()
    trial.out.write_text("new")
    trial.check_kept()
    trial.check_clean()


def test_half_an_output_is_seen(trial):
    trial.out.write_text("ne")
    with pytest.raises(Wrong, match="the earlier output is not whole"):
        trial.check_kept()


def test_an_output_that_is_gone_is_seen_unless_it_was_only_moved_aside(trial):
    trial.out.rename(trial.place / ".uwm-old-0123456789abcdef-out")
    trial.check_kept()
    with pytest.raises(Wrong, match="left behind"):
        trial.check_clean()
    (trial.place / ".uwm-old-0123456789abcdef-out").unlink()
    with pytest.raises(Wrong, match="the earlier output is not whole"):
        trial.check_kept()


def test_a_changed_input_is_seen(trial):
    (trial.ground.inputs / "x").write_text("changed")
    with pytest.raises(Wrong, match="an input was changed"):
        trial.check_kept()


def test_a_run_that_ends_badly_the_second_time_is_seen(trial, monkeypatch):
    monkeypatch.setattr(kill_matrix, "run", lambda *_: Ended(4, "uwm: error: x\n", 0, 1))
    with pytest.raises(Wrong, match="again: 4: uwm: error: x"):
        trial.check_again()
    monkeypatch.setattr(kill_matrix, "run", lambda *_: Ended(0, "", 0, 1))
    with pytest.raises(Wrong, match="not the output of an undisturbed run"):
        trial.check_again()


@pytest.mark.parametrize(
    ("left", "said", "wrong"),
    [
        (False, f"uwm: interrupted\n{KEPT}\n", "promised, and nothing is there"),
        (True, "uwm: interrupted\n", "did not say how to go on"),
        (True, f"uwm: interrupted\n{KEPT}\n", "work is left behind"),
    ],
)
def test_what_a_stop_says_is_held_against_what_it_left(left, said, wrong, trial, monkeypatch):
    work = trial.log.with_suffix(".cache") / "uwm" / "unfinished" / "run"

    def stopped(child, log, begun):
        work.mkdir(parents=True, exist_ok=True)
        if left:
            (work / "entry.safetensors").write_bytes(b"x")
        return Ended(128 + kill_matrix.SIGNALS[0], said, 0, 1)

    monkeypatch.setattr(trial.rng, "randrange", lambda *_: 1, raising=False)
    monkeypatch.setattr(trial.rng, "choice", lambda among: among[0], raising=False)
    monkeypatch.setattr(kill_matrix, "start", lambda *_, **__: 0)
    monkeypatch.setattr(kill_matrix.os, "kill", lambda *_: None)
    monkeypatch.setattr(kill_matrix, "wait", stopped)
    monkeypatch.setattr(Trial, "check_again", lambda _: None)
    with pytest.raises(Wrong, match=wrong):
        kill_matrix.stopped(trial)


def test_half_a_file_of_a_folder_that_is_filled_is_seen(tmp_path):
    (tmp_path / "comparison.json").write_text("{}")
    old = result_of(tmp_path)
    VERBS["compare"].check_parts(tmp_path, old, {})
    (tmp_path / "comparison.json").write_text("[]")
    with pytest.raises(AssertionError, match="half a file"):
        VERBS["compare"].check_parts(tmp_path, old, {})
    (tmp_path / "comparison.json").unlink()
    with pytest.raises(AssertionError, match="is gone"):
        VERBS["compare"].check_parts(tmp_path, old, {})


def test_times_are_no_difference_and_all_else_is(tmp_path):
    (tmp_path / "tune.json").write_text('{"trials": {"seconds": 1, "done": 2}}')
    one = result_of(tmp_path)
    (tmp_path / "tune.json").write_text('{"trials": {"seconds": 3, "done": 2}}')
    assert result_of(tmp_path) == one
    (tmp_path / "tune.json").write_text('{"trials": {"seconds": 1, "done": 3}}')
    assert result_of(tmp_path) != one
