"""How several processes begin and end together: one of them tells the user, whichever it was that failed."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from ..errors import INTERRUPTED, UwmError
from ..escaping import error_text
from .group import ProcessLost, TorchGroup, joined

if TYPE_CHECKING:
    from torch.distributed import Store

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # torchrun sets them
WEEK = timedelta(days=7)  # how long a process may wait for others, which may write or train meanwhile
LOOK = 0.2  # seconds between two looks for a failure
GRACE = 2.0  # seconds in which a process may come upon the same failure by itself
PATIENCE = 20.0  # seconds that the others leave the first process to tell
STOPPED = (
    "uwm: error: stopped, because another process of this run has ended or the run was cancelled; nothing was left "
    "half-written"
)


@dataclass(frozen=True)
class Ending:
    """How a process ended.

    Attributes:
        code: Its exit code.
        text: What the user is to be told; empty for nothing.
        rank: Of the process.
        stopped: Whether it was stopped, by a signal or for want of memory or disk: the same command may come further.
    """

    code: int
    text: str = ""
    rank: int = 0
    stopped: bool = False

    def with_way_on(self, text: str, way_on: Callable[[], str]) -> str:
        """What is told, with a line of its own on how to go on where the process was stopped and there is a way."""
        return "\n".join(filter(None, (text, way_on() if self.stopped else "")))

    def told_by(self, rank: int, count: int) -> str:
        """The text, with the process that it is about where another one tells it."""
        named = f"uwm: error: process {self.rank} of {count}: "
        return self.text if rank == self.rank else self.text.replace("uwm: error: ", named, 1)


def is_one_of_several(environment: Mapping[str, str]) -> bool:
    """Whether torchrun started this process as one of several."""
    return all(environment.get(name) for name in VARIABLES) and environment["WORLD_SIZE"] != "1"


def together(work: Callable[[], Ending], environment: Mapping[str, str], way_on: Callable[[], str] = str) -> NoReturn:
    """Work in the group that torchrun started, and leave.

    The first process prints; the others are silent. A failure of any of them ends all: the first one tells it once and
    leaves with its exit code. Where the first one was killed another one tells.

    Args:
        work: The job; it returns how it ended, and raises `SystemExit` where a signal stops it.
        environment: With torchrun's variables.
        way_on: How to go on, a line, where work was kept; else empty.
    """
    rank, terminal = int(environment["RANK"]), sys.stderr
    if rank > 0:
        silent = open(os.devnull, "w")  # noqa: SIM115
        sys.stdout = sys.stderr = silent
    try:
        group, board = _start(environment)
    except (RuntimeError, UwmError) as error:
        _leave(Ending(getattr(error, "exit_code", 4), f"uwm: error: {error_text(error)}", rank), terminal)
    watcher = Watcher(board, group)
    watcher.start()
    try:
        with joined(group):
            ending = work()
            if ending.code == 0:
                group.exchange(None, "the end")
    except ProcessLost:
        ending = Ending(4, STOPPED, stopped=True)
    except UwmError as error:
        ending = Ending(error.exit_code, f"uwm: error: {error_text(error)}")
    except SystemExit as stop:
        ending = Ending(stop.code if isinstance(stop.code, int) else 1, STOPPED, stopped=True)
    except KeyboardInterrupt:
        ending = Ending(130, INTERRUPTED, stopped=True)
    except BaseException:
        ending = Ending(1, traceback.format_exc().rstrip())
    for name in ("SIGTERM", "SIGINT"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)  # what is left takes no time
    watcher.stop()
    _end(group, board, replace(ending, rank=rank), terminal, way_on)


def _start(environment: Mapping[str, str]) -> tuple[TorchGroup, Board]:
    """The group: NCCL where each process of a machine has a GPU of its own, else Gloo. Raises RuntimeError."""
    import torch
    import torch.distributed as dist

    rank, count, local = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if devices:
        torch.cuda.set_device(local % devices)
    nccl = 0 < int(environment.get("LOCAL_WORLD_SIZE", count)) <= devices
    dist.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo", timeout=WEEK)
    place = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    store = dist.TCPStore(*place, is_master=False, timeout=timedelta(seconds=30))  # its own: the group's may be busy
    return TorchGroup(rank, count, nccl), Board(dist.PrefixStore("uwm", store))


class Board:
    """What the processes tell each other outside of the work. Where the store is gone it knows nothing."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def report(self, ending: Ending) -> None:
        """Note a failure; the first one counts."""
        with suppress(RuntimeError):
            if self._store.add("failures", 1) == 1:
                self._store.set("failure", json.dumps(asdict(ending)))

    def failure(self) -> Ending | None:
        """The first failure."""
        found = self._read("failure")
        return None if found is None else Ending(**json.loads(found))

    def end(self) -> None:
        """Note that the first process has told all there is."""
        with suppress(RuntimeError):
            self._store.set("ended", "yes")

    def ended(self) -> bool:
        """Whether it has."""
        return self._read("ended") is not None

    def may_tell(self, rank: int) -> bool:
        """Whether this process is to tell of the failure: the first that asks."""
        try:
            return self._store.add("told", 1) == 1
        except RuntimeError:
            return rank <= 1  # the store may have ended with process 0

    def _read(self, name: str) -> bytes | None:
        try:
            return self._store.get(name) if self._store.check([name]) else None
        except RuntimeError:
            return None


class Watcher(threading.Thread):
    """Stops this process, as SIGTERM does, soon after another one has failed."""

    def __init__(self, board: Board, group: Any) -> None:
        super().__init__(daemon=True)
        self._board, self._group, self._done = board, group, threading.Event()

    def run(self) -> None:
        """Look until there is a failure, or nothing to do any more."""
        while self._board.failure() is None:
            if self._done.wait(LOOK):
                return
        until = time.monotonic() + GRACE
        while not self._group.waiting and time.monotonic() < until:
            if self._done.wait(LOOK):
                return
        if not self._done.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def stop(self) -> None:
        """This process ends by itself."""
        self._done.set()


def _end(group: TorchGroup, board: Board, ending: Ending, terminal: TextIO, way_on: Callable[[], str]) -> NoReturn:
    """Tell what is to be told, once, and leave."""
    if ending.code == 0:
        sys.stdout.flush()
        terminal.flush()
        os._exit(0)
    if ending.text != STOPPED:
        board.report(ending)
    found = ending if ending.text != STOPPED else board.failure() or ending
    until = time.monotonic() + (PATIENCE if ending.text != STOPPED else GRACE)
    while group.rank > 0 and not board.ended() and time.monotonic() < until:
        time.sleep(LOOK / 4)
    text = found.with_way_on(found.told_by(group.rank, group.count), way_on)
    if text and not board.ended() and board.may_tell(group.rank):
        _say(text, terminal)
    if group.rank == 0:
        board.end()
    _leave(Ending(found.code), terminal)


def _leave(ending: Ending, terminal: TextIO) -> NoReturn:
    """Without waiting for threads and transfers that never end."""
    _say(ending.text, terminal)
    sys.stdout.flush()
    os._exit(ending.code)


def _say(text: str, terminal: TextIO) -> None:
    if text:
        terminal.write(f"{text}\n")
        terminal.flush()
