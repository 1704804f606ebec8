"""`python stopping.py K ARGUMENTS…`: the program keeps its work after every batch, and is killed at the K-th time.

By the signal that the variable STOP names, SIGKILL where it names none.

As a module: the same within this process, where the kill is an exception that nothing catches.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from uwm import unfinished
from uwm.processes import is_first


class Killed(BaseException):
    """In place of SIGKILL."""


@contextmanager
def keeping(stop: Callable[[int], None] = lambda puts: None) -> Iterator[list[str]]:
    """Keep work whenever there is any; `stop` is told how often that was. Gives the names of what was kept."""
    put, names = unfinished.Unfinished.put, []

    def counted(self, name, entry):
        put(self, name, entry)
        names.append(name)
        stop(len(names))

    often = {"EVERY": 0.0, "SHARE": 1e9}
    with mock.patch.multiple(unfinished, **often), mock.patch.object(unfinished.Unfinished, "put", counted):
        yield names


def kept(cache: Path) -> list[Path]:
    """The files of all runs in a cache."""
    return [path for path in (cache / "unfinished").rglob("*") if path.is_file()]


def kill_at(count: int) -> Callable[[int], None]:
    """Raise `Killed` at that time."""

    def stop(puts):
        if puts == count:
            raise Killed

    return stop


def _die_at(count: int) -> Callable[[int], None]:
    def stop(puts):
        if puts == count and is_first():
            os.kill(os.getpid(), getattr(signal, os.environ.get("STOP", "SIGKILL")))

    return stop


if __name__ == "__main__":
    from uwm.cli import main

    with keeping(_die_at(int(sys.argv[1]))):
        main(sys.argv[2:])
