"""A search that was killed goes on from its journal, and ends as if it had not been killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from optuna.trial import TrialState
from tuning import searches
from tuning.searches import ground_of, outcome, search_of

TRIALS = 24  # from the 11th of a method on, a trial is drawn by what was tried before
AFTER = (9, 22)  # trials that are done when the search is killed


@pytest.fixture(scope="module")
def ground_and_calib(tiny_hf, tiny_set):
    return ground_of(tiny_hf, tiny_set)


@pytest.fixture(scope="module")
def whole(ground_and_calib, tmp_path_factory):
    """Never killed: its outcome and its journal."""
    journal = tmp_path_factory.mktemp("whole") / "study.journal"
    found = search_of(*ground_and_calib, journal).run(TRIALS)
    assert found.invalid
    return outcome(found), journal.read_bytes()


def test_a_search_that_is_killed_again_and_again_ends_as_one_that_was_not(
    ground_and_calib, whole, tiny_hf, tiny_set, tmp_path
):
    """kill -9 of a real process while it makes the next trial."""
    journal, done = tmp_path / "study.journal", []
    root = Path(searches.__file__).parents[1]
    path = os.pathsep.join([str(root), str(root.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "tuning.searches", tiny_hf, tiny_set, journal, str(TRIALS)]
    for after in AFTER:
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True, env=environment) as process:
            for line in process.stdout:
                done.append(line.strip())
                if line.strip() == f"done {after - 1}":
                    time.sleep(0.01)
                    process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    begun = [int(line.removeprefix("begins with ")) for line in done if line.startswith("begins")]
    assert begun[0] == 0
    assert AFTER[0] <= begun[1] < AFTER[1]
    search = search_of(*ground_and_calib, journal)
    assert AFTER[1] <= search.done < TRIALS
    assert outcome(search.run(TRIALS)) == whole[0]


def cuts(journal):
    """Places at which a journal may end: after every line, and within each."""
    ends = [0]
    for line in journal.splitlines(keepends=True):
        ends += [ends[-1] + len(line) // 2, ends[-1] + len(line) - 1, ends[-1] + len(line)]
    return ends


@pytest.mark.parametrize("part", range(2))
def test_a_journal_that_ends_anywhere_is_gone_on_with(ground_and_calib, whole, tmp_path, part):
    """What a killed process has written may end within a line, or between the lines of one trial."""
    journal = tmp_path / "study.journal"
    some = cuts(whole[1])[part * 17 :: 170]
    assert len(some) > 1
    for end in some:
        journal.write_bytes(whole[1][:end])
        assert outcome(search_of(*ground_and_calib, journal).run(TRIALS)) == whole[0], end
        kept = whole[1][: whole[1][:end].rfind(b"\n") + 1]
        assert journal.read_bytes().startswith(kept)
        assert all(map(json.loads, journal.read_bytes().splitlines()))


def test_a_journal_that_ends_in_the_first_trials_is_gone_on_with(ground_and_calib, whole, tmp_path):
    """Where a trial is asked for, but not begun, and where it is begun, but not done."""
    journal, lines = tmp_path / "study.journal", whole[1].splitlines(keepends=True)
    for end in range(1, 16):
        journal.write_bytes(b"".join(lines[:end]))
        search = search_of(*ground_and_calib, journal)
        assert search.run(5).tried == tuple(one for one in whole[0][0] if one.number < 5), end
        states = {trial.state for study in search._studies.values() for trial in study.get_trials()}
        assert states <= {TrialState.COMPLETE, TrialState.FAIL}, end


def test_a_lock_that_was_left_is_no_reason_to_wait(ground_and_calib, whole, tmp_path):
    journal, lock = tmp_path / "study.journal", tmp_path / "study.journal.lock"
    journal.write_bytes(whole[1])
    lock.touch()
    begun = time.monotonic()
    assert outcome(search_of(*ground_and_calib, journal).run(TRIALS)) == whole[0]
    assert time.monotonic() - begun < 20
    assert not lock.exists()
