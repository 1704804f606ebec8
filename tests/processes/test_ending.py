"""Who tells what when one of several processes fails."""

from __future__ import annotations

import pytest

from uwm.processes.ending import STOPPED, Board, Ending, is_one_of_several

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize("change", [{}, *({name: ""} for name in TORCHRUN), {"WORLD_SIZE": "1"}])
def test_several_processes_are_known_by_all_of_torchruns_variables(change):
    assert is_one_of_several(TORCHRUN | change) == (not change)


def test_the_process_is_named_where_another_one_tells():
    ending = Ending(2, "uwm: error: set: no such folder", rank=1)
    assert ending.told_by(1, 4) == "uwm: error: set: no such folder"
    assert ending.told_by(0, 4) == "uwm: error: process 1 of 4: set: no such folder"


class Store:
    """As torch's, in memory."""

    def __init__(self):
        self.kept = {}

    def add(self, name, value):
        self.kept[name] = self.kept.get(name, 0) + value
        return self.kept[name]

    def set(self, name, value):
        self.kept[name] = value

    def get(self, name):
        return self.kept[name]

    def check(self, names):
        return all(name in self.kept for name in names)


class Gone:
    """A store whose process has ended."""

    def __getattr__(self, name):
        def fail(*arguments):
            raise RuntimeError("connection closed")

        return fail


def test_the_first_failure_counts_and_one_process_tells():
    board = Board(Store())
    assert board.failure() is None
    assert not board.ended()
    board.report(Ending(2, "first", 1))
    board.report(Ending(4, "second", 0))
    assert board.failure() == Ending(2, "first", 1)
    assert [board.may_tell(rank) for rank in (2, 0, 1)] == [True, False, False]
    board.end()
    assert board.ended()


def test_without_the_store_nothing_is_known_and_one_of_those_that_are_left_tells():
    board = Board(Gone())
    board.report(Ending(1, STOPPED))
    board.end()
    assert board.failure() is None
    assert not board.ended()
    assert [board.may_tell(rank) for rank in (1, 2, 3)] == [True, False, False]
