"""Forked processes: answers in order, errors, what ends them; and a search that comes to the same with them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tuning.searches import ground_of, outcome, search_of

from uwm.errors import BadInput, NotFinite, ResourceFault
from uwm.outputs.locks import locked
from uwm.tuning import candidates, forked
from uwm.tuning.forked import Forked, how_many

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are forked on Linux alone")
CPU = torch.device("cpu")


@pytest.fixture
def made():
    """Makes processes that are ended."""
    found = []

    def make(number, work):
        found.append(Forked(number, work))
        return found[-1]

    yield make
    for one in found:
        one.close()


@linux
def test_answers_come_in_order_and_tensors_stay_what_they_are(made):
    def work(number):
        time.sleep(0.05 * (number == 0))
        return {"values": torch.full((2, 3), number / 3, dtype=torch.float64), "process": os.getpid()}

    found = [*made(2, work).results([(n,) for n in range(7)])]
    assert all(
        torch.equal(one["values"], torch.full((2, 3), n / 3, dtype=torch.float64)) for n, one in enumerate(found)
    )
    assert len({one["process"] for one in found} - {os.getpid()}) == 2


@linux
@pytest.mark.parametrize("error", [BadInput("no such thing", "uwm this"), NotFinite("NaN", "text", 3)])
def test_errors_are_raised_here_and_the_next_call_is_answered(made, error):
    def work(number):
        if number == 1:
            raise error
        return number

    helpers = made(2, work)
    answers = helpers.results([(n,) for n in range(9)])
    assert next(answers) == 0
    with pytest.raises(type(error)) as found:
        next(answers)
    assert (str(found.value), vars(found.value)) == (str(error), vars(error))
    assert [*helpers.results([(5,), (6,)])] == [5, 6]


@linux
def test_what_no_error_of_uwm_is_comes_out_as_it_is(made):
    """As from a plug-in in this process; nothing is said of memory."""

    def work():
        raise ZeroDivisionError("of a plug-in")

    with pytest.raises(ZeroDivisionError, match="of a plug-in"):
        next(made(2, work).results([()]))


@linux
def test_what_nobody_wants_any_more_is_not_begun(made, tmp_path):
    def work(number):
        (tmp_path / str(number)).touch()
        return number

    helpers = made(2, work)
    answers = helpers.results([(n,) for n in range(50)])
    assert next(answers) == 0
    answers.close()
    assert [*helpers.results([(77,)])] == [77]
    assert len([*tmp_path.iterdir()]) < 10


@linux
def test_a_process_that_was_killed_is_told(made):
    def work(number):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ResourceFault, match=r"was ended \(exit code -9\); it may have run out of memory"):
        next(made(2, work).results([(0,)]))


ORPHANS = """
import os, signal, sys, time
from uwm.tuning.forked import Forked
made = Forked(2, lambda: os.getpid())
print(*made.results([(), ()]), *(process.pid for process in made._processes.values()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@linux
def test_processes_end_with_the_one_that_made_them():
    done = subprocess.run([sys.executable, "-c", ORPHANS], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    processes = [Path("/proc", word) for word in {*done.stdout.split()}]
    assert len(processes) == 2
    until = time.monotonic() + 20
    while any(process.exists() and "Z" not in (process / "stat").read_text().split()[2] for process in processes):
        assert time.monotonic() < until
        time.sleep(0.02)


@linux
def test_a_lock_is_not_held_by_them(made, tmp_path):
    with locked(tmp_path / "out", tmp_path / "lock"):
        helpers = made(2, os.getpid)
        assert len([*helpers.results([(), ()])]) == 2
    with locked(tmp_path / "out", tmp_path / "lock"):  # they live, and the lock can be had again
        assert len([*helpers.results([(), ()])]) == 2


def test_no_process_is_forked_where_that_is_not_safe(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(sys, "platform", "linux")
    assert [how_many(4, CPU), how_many(2, CPU), how_many(4, torch.device("cuda"))] == [3, 2, 0]
    monkeypatch.setattr(forked, "several", lambda: True)
    assert how_many(4, CPU) == 0
    monkeypatch.setattr(forked, "several", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert how_many(4, CPU) == 0
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert how_many(4, CPU) == 0


@linux
def test_a_search_finds_the_same_with_several_processes(monkeypatch, tiny_hf, tiny_set):
    """Of methods that are quick, and of one that mostly is not, which no helper then measures."""
    ground, calib = ground_of(tiny_hf, tiny_set)
    wanted = {"methods": ("repel", "null-space", "uwm"), "limited": False}
    alone = search_of(ground, calib, **wanted).run(20)
    answered = []

    class Counted(Forked):
        def results(self, asked):
            for (method, *_), answer in zip(asked, super().results(asked), strict=True):
                answered.append((method, answer is not None))
                yield answer

    monkeypatch.setattr(candidates, "Forked", Counted)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert outcome(search_of(ground, calib, **wanted).run(20)) == outcome(alone)
    assert {*answered} >= {("repel", True), ("null-space", True), ("uwm", False)}


def test_a_search_goes_on_where_no_process_can_be_made(monkeypatch, tiny_hf, tiny_set):
    ground, calib = ground_of(tiny_hf, tiny_set)
    alone = search_of(ground, calib).run(4)

    def none(*_):
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(candidates, "how_many", lambda *_: 2)
    monkeypatch.setattr(candidates, "Forked", none)
    assert outcome(search_of(ground, calib).run(4)) == outcome(alone)
