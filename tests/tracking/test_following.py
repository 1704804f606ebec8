"""What a tracker is told, with one of our own: in which order, when it fails, and by which process."""

from __future__ import annotations

import logging

import pytest
from terminal import refused

from uwm.errors import ResourceFault
from uwm.processes import joined
from uwm.tracking import Run, following, note

RUN = Run("edit tiny", {"seed": 0})
VERDICT = {"verdict": "Safer.", "sentences": ["One.", "Two."]}
RESULTS = {
    "test": {"before": {"figures": {"GS": [0.1, 0.0, 0.2]}, "zero_shot": {"pets": {"top1": 0.5, "names": ["a"]}}}}
}


class Kept:
    """A tracker that keeps what it is told, or fails at one of its calls."""

    name = "kept"

    def __init__(self, fails: str = ""):
        self.fails, self.told = fails, []

    def check(self):
        self._tell("check")

    def start(self, run):
        self._tell("start", run.name)
        return self

    def log(self, step, figures):
        self._tell("log", step, figures)

    def finish(self, figures, texts, failed):
        self._tell("finish", figures, texts, failed)

    def _tell(self, call, *values):
        if call == self.fails:
            raise OSError("the disk is full")
        self.told.append((call, *values))


def test_a_tracker_is_told_of_steps_and_of_the_end():
    tracker = Kept()
    note(1, {"lost": 1.0})
    with following(tracker, RUN) as followed:
        note(2, {"loss": 0.5, "odd": float("nan")})
        followed.ends(RESULTS, VERDICT)
    note(3, {"lost": 1.0})
    figures = {"test/before/GS": 0.1, "test/before/zero_shot/pets/top1": 0.5}
    texts = {"verdict": "Safer.", "because": "One. Two."}
    assert tracker.told == [("start", "edit tiny"), ("log", 2, {"loss": 0.5}), ("finish", figures, texts, False)]


def test_a_run_that_fails_is_told_and_its_error_goes_on():
    tracker = Kept()
    with pytest.raises(ZeroDivisionError), following(tracker, RUN):
        note(1 // 0, {})
    assert tracker.told[-1] == ("finish", {}, {}, True)


def test_steps_of_runs_within_a_run_are_not_told():
    tracker = Kept()
    with following(tracker, RUN, live=False):
        note(1, {"loss": 1.0})
    assert [call for call, *_ in tracker.told] == ["start", "finish"]


@pytest.mark.parametrize("call", ["log", "finish"])
def test_a_tracker_that_fails_on_the_way_is_left_out_and_the_work_goes_on(call, caplog):
    tracker, worked = Kept(call), []
    with caplog.at_level(logging.WARNING, "uwm"), following(tracker, RUN):
        note(1, {"loss": 1.0})
        note(2, {"loss": 1.0})
        worked.append(True)
    assert worked
    assert caplog.messages == ["--track kept: no longer told of this run (OSError: the disk is full)"]
    assert [found for found, *_ in tracker.told].count("log") == (0 if call == "log" else 2)


def test_a_tracker_that_cannot_begin_stops_the_run_before_the_work():
    words = r"--track kept: cannot begin a run \(OSError: the disk is full\); leave it out, or repair it"
    with pytest.raises(ResourceFault, match=words), following(Kept("start"), RUN):
        raise AssertionError("worked")


OF_OTHERS = """
class Printing:
    name = "printing"
    def check(self): pass
    def start(self, run):
        print("start", run.name)
        return self
    def log(self, step, figures): print("log", step)
    def finish(self, figures, texts, failed): print("finish", failed)
TRACKER = Printing()
"""


def test_a_tracker_of_another_distribution_is_found(run_uwm, plug_in, tiny_hf, tiny_set):
    plug_in("uwm.trackers", "printing-tracker", "printing", OF_OTHERS)
    arguments = ("edit", tiny_hf, "--calib", tiny_set, "--dry-run", "--beside", "none", "-q", "--track", "printing")
    code, out, err = run_uwm(*arguments)
    assert (code, err) == (0, "")
    assert out.startswith("start edit tiny-hf\nfinish False\nDONE")


def test_of_several_processes_the_first_one_tells(run_uwm, plug_in, tiny_hf, tiny_set, monkeypatch):
    plug_in("uwm.trackers", "printing-tracker", "printing", OF_OTHERS)
    from uwm.cli.tracking import tracked
    from uwm.fitting import Recipe

    class Second:
        rank, count = 1, 2

    recipe = Recipe(model=str(tiny_hf), calib=str(tiny_set))
    with joined(Second()), tracked("printing", "edit", recipe) as followed:
        assert followed.recording is None
    with tracked("printing", "edit", recipe) as followed:
        assert followed.recording is not None


def test_a_tracker_that_is_not_there_is_refused_with_those_that_are(run_uwm, tmp_path):
    found = run_uwm("edit", tmp_path / "none", "--calib", tmp_path, "--dry-run", "--track", "paper")
    refused(found, 2, "--track 'paper': expected one of tensorboard, trackio, wandb")


def test_what_is_no_tracker_is_refused(run_uwm, plug_in, tmp_path):
    plug_in("uwm.trackers", "half-tracker", "half", "class Half:\n    name = 'half'\nTRACKER = Half()\n")
    found = run_uwm("edit", tmp_path / "none", "--calib", tmp_path, "--dry-run", "--track", "half")
    refused(found, 2, "tracker 'half' of half-tracker", "is no tracker, it has no 'check'")
