"""Inputs of every kind, changed a few hundred times: each is read or refused, and nothing else ever happens.

`long_run.py` beside this does the same for minutes or hours, with records too.
"""

from __future__ import annotations

import os
import random
import warnings
from pathlib import Path

import pytest
from fuzz import targets
from fuzz.every import GROUPS, every_target
from fuzz.long_run import slice_of
from fuzz.targets import Finding, Target, attempt, nothing_runs

EXECUTIONS = {"headers": 600, "torch": 250, "texts": 60, "pictures": 60}  # of each target; records have their own test
SLOW = {"TOML of edit": 40, "TOML of compare": 40, "PNG": 30}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("inputs")


@pytest.mark.parametrize("group", sorted(EXECUTIONS))
def test_a_changed_input_is_read_or_refused(group, folder):
    (folder / group).mkdir()
    for target in GROUPS[group](folder / group):
        executions = SLOW.get(target.name, EXECUTIONS[group])
        taken = sum(attempt(target, target.draw(random.Random(seed))) for seed in range(executions))
        assert taken < executions, target.name


def test_every_group_of_inputs_is_tried_here_or_among_the_records():
    assert {*GROUPS} == {*EXECUTIONS, "records"}


# ---------------------------------------------------------------- the fuzzer itself


def of(check, data=b"x"):
    """A target of one input, and what its check does with it."""
    return Target("one", 0.01, lambda rng: data, check)


def test_code_that_runs_is_a_finding():
    with pytest.raises(Finding, match="something ran"), nothing_runs():
        exec("1")
    with nothing_runs():
        pass


def test_an_input_that_takes_too_long_is_a_finding(monkeypatch):
    monkeypatch.setattr(targets, "MOST_SECONDS", 0.05)

    def hang(data):
        while True:
            pass

    with pytest.raises(Finding, match="took more than 0.05 s"):
        attempt(of(hang), b"")


def test_a_warning_is_a_finding():
    with pytest.raises(UserWarning, match="odd"):
        attempt(of(lambda data: warnings.warn("odd", stacklevel=2)), b"")


def test_a_slice_counts_what_was_taken():
    found = slice_of(of(lambda data: True), 0)
    assert found["tried"] == found["taken"] > 0
    assert not found["failed"]


def test_a_slice_keeps_the_first_input_that_failed_at_a_place():
    def check(data):
        raise Finding("three")

    found = slice_of(of(check, b"\3"), 5)
    ((place, (seed, words, data)),) = found["failed"].items()
    assert (seed, words, bytes.fromhex(data)) == (5, "Finding: three", b"\3")
    assert place.startswith("test_inputs_fuzz.py:")


def test_a_process_that_dies_is_a_finding_with_its_input():
    found = slice_of(of(lambda data: os._exit(7), b"\2"), 9)
    ((words, (seed, _, data)),) = found["failed"].items()
    assert words.startswith("the process died")
    assert (found["tried"], seed, bytes.fromhex(data)) == (1, 9, b"\2")


def test_a_slice_that_takes_too_much_memory_fails():
    found = slice_of(of(lambda data: bytearray(3 << 30) is not None), 0)
    assert found["taken"] == 0
    assert any("MemoryError" in words for _, words, _ in found["failed"].values())


def test_long_runs_know_the_kinds_of_the_promise(tmp_path):
    names = {"safetensors header", "torch pickle", "torch zip", "patch", "pairs.jsonl", "TOML of edit", "PNG", "TIFF"}
    assert names <= {*every_target(tmp_path)}


# ---------------------------------------------------------------- what was found


FOUND = sorted(path for path in (Path(__file__).parent / "found").rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def by_folder(tmp_path_factory):
    """Target by the name of the folder that holds what it found."""
    return {name.replace(" ", "-"): target for name, target in every_target(tmp_path_factory.mktemp("found")).items()}


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_found_once_is_refused(path, by_folder):
    assert not attempt(by_folder[path.parent.name], path.read_bytes())
