"""What a verb shows of its progress: a bar on a terminal, lines elsewhere, nothing where that was asked for."""

from __future__ import annotations

import os
import re
import select
import struct
import subprocess
import sys
import time

import pytest
from terminal import ALL_OF_CALIB, done

from uwm import stages
from uwm.cli import progress
from uwm.cli.progress import Bar, Lines


@pytest.fixture
def shown(monkeypatch):
    """Progress is shown, as outside of tests."""
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS")


class Recorded(progress.Stages):
    def __init__(self):
        super().__init__()
        self.told = []

    def _show(self, name, within):
        self.told.append((name, round(self._fraction(within), 3)))


def test_a_run_is_as_far_as_its_stages_are():
    found = Recorded()
    stages.plan(found, {"reading": 1, "before": 4, "never": 0, "after": 5})
    stages.stage(found, "reading", 0)
    stages.stage(found, "before", 2)
    assert [*found(range(2), 2, "text")] == [0, 1]
    assert [*found(range(1), 1, "image")] == [0]
    stages.stage(found, "after", 1)
    assert [*found(iter("xyzzy"), 5, "after")] == [*"xyzzy"]
    assert found.told == [
        ("reading", 0.0), ("before", 0.1), ("before: text", 0.2), ("before: text", 0.3), ("before: image", 0.5),
        ("after", 0.5), ("after", 0.6), ("after", 0.7), ("after", 0.8), ("after", 0.9), ("after", 1.0),
    ]  # fmt: skip


def test_a_plan_that_is_told_anew_counts_what_is_done():
    found = Recorded()
    stages.plan(found, {"choosing": 5, "the chosen edit": 5})
    stages.stage(found, "choosing", 1)
    stages.plan(found, {"choosing": 5, "repel": 15})
    stages.stage(found, "repel", 1)
    assert found.told == [("choosing", 0.0), ("repel", 0.25)]


def test_more_than_was_planned_is_never_more_than_all():
    found = Recorded()
    stages.plan(found, {"one": 1})
    stages.stage(found, "one", 1)
    for _ in range(3):
        [*found(range(3), 2, "more")]
    stages.stage(found, "unplanned", 1)
    assert max(far for _, far in found.told) == 1


def test_without_a_plan_every_iterable_is_a_stage():
    found = Recorded()
    for name in ("first", "second"):
        [*found(range(2), 2, name)]
    assert found.told == [(name, far) for name in ("first", "second") for far in (0.0, 0.5, 1.0)]


def test_what_shows_no_stages_is_told_none():
    stages.plan(lambda items, total, name: items, {"a": 1})
    stages.stage(None, "a")
    stages.finish(None)


def test_lines_say_the_stage_and_now_and_then_how_far_it_is(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    found = Lines()
    stages.plan(found, {"reading": 1, "before": 4})
    stages.stage(found, "reading", 0)
    now[0] += 4
    stages.stage(found, "before", 1)
    for _ in found(range(4), 4, "text"):
        now[0] += 20
    assert capsys.readouterr().err == (
        "uwm: [0 s] reading (1 of 2)\n"
        "uwm: [4 s] before (2 of 2)\n"
        "uwm: [44 s] before: text (2 of 2), 60 %, 29 s left\n"
        "uwm: [84 s] before: text (2 of 2), 100 %, 0 s left\n"
    )


@pytest.mark.usefixtures("shown")
def test_an_edit_tells_its_stages_in_lines(run_uwm, tiny_hf, tiny_set, tmp_path):
    job = ("edit", tiny_hf, "--calib", tiny_set, *ALL_OF_CALIB, "-o", tmp_path / "out", "--beside", "repel")
    code, _, err = run_uwm(*job)
    assert code == 0
    told = re.findall(r"^uwm: \[\d+ s\] (.*)$", err, re.M)
    assert told == ["loading uwm and torch", "reading the sets"] + [
        f"{name} ({number} of 8)"
        for number, name in enumerate(
            ("loading the model", "profiling", "before", "uwm", "random", "repel", "writing"), 2
        )
    ]


@pytest.mark.usefixtures("shown")
@pytest.mark.parametrize("flag", ["-q", "--no-progress"])
def test_no_progress_is_shown_where_it_is_not_wanted(run_uwm, tiny_hf, tiny_set, flag):
    done_ = run_uwm("eval", tiny_hf, "--pairs", tiny_set, "--split", "test", flag)
    assert done(done_)
    assert "loading" not in done_[2]


@pytest.mark.usefixtures("shown")
def test_an_evaluation_tells_its_stages_in_lines(run_uwm, tiny_hf, tiny_set):
    err = run_uwm("eval", tiny_hf, "--baseline", tiny_hf, "--pairs", tiny_set, "--split", "test")[2]
    told = re.findall(r"^uwm: \[\d+ s\] (.*)$", err, re.M)
    assert told[1:] == [
        "loading the baseline (1 of 4)",
        "baseline (2 of 4)",
        "loading the model (3 of 4)",
        "model (4 of 4)",
    ]


def test_a_bar_says_the_time_that_is_left_and_goes_again(capsys):
    bar = Bar()
    bar.loading()
    assert capsys.readouterr().err.startswith("loading uwm and torch …")
    stages.plan(bar, {"before": 1, "after": 1})
    stages.stage(bar, "before", 1)
    [*bar(range(3), 3, "text")]
    stages.stage(bar, "after", 1)
    stages.finish(bar)
    shown = re.split(r"\r", capsys.readouterr().err)
    assert any(re.match(r"before +0 %\|.*\| 00:00 < \?", line) for line in shown)
    assert any(re.match(r"after +50 %\|.*\| \d\d:\d\d < \d\d:\d\d", line) for line in shown)
    assert shown[-1] == ""
    assert shown[-2].strip() == ""


def test_a_terminal_shows_that_it_loads_at_once_and_then_one_bar(tiny_hf, tiny_set, tmp_path):
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "", "COLUMNS": "80"}
    command = [sys.executable, "-m", "uwm", "eval", str(tiny_hf), "--pairs", str(tiny_set), "--split", "test"]
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=theirs, env=environment)
    os.close(theirs)
    told = b""
    while select.select([ours], [], [], 120)[0]:
        try:
            told += os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
    assert process.wait(60) == 0
    text = told.decode()
    assert text.startswith("loading uwm and torch …\r")
    assert re.search(r"\rmodel +\d+ %\|", text)
    assert text.rstrip("\r").rpartition("\r")[2].strip() == ""  # the bar is gone
    assert "VERDICT" in (tmp_path / "out").read_text()


@pytest.mark.parametrize(("value", "is_shown"), [("1", False), ("true", False), ("ON", False), ("0", True), ("", True)])
def test_progress_by_the_hubs_variable(value, is_shown, run_uwm, tiny_hf, tiny_set, monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", value)
    err = run_uwm("eval", tiny_hf, "--pairs", tiny_set, "--split", "test")[2]
    assert ("loading the model" in err) == is_shown
