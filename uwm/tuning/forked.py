"""Forked processes that share the parts of one trial: they hold what this one held when they were made."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from ..errors import ResourceFault
from ..processes import several

Work = Callable[..., Any]


def how_many(parts: int, device: torch.device) -> int:
    """Processes for so many parts, as many as torch has threads; 0 where forking is not safe or nothing is gained.

    Not safe are a GPU's context, the threads of torch.distributed, and any system but Linux.
    """
    if not sys.platform.startswith("linux") or device.type != "cpu" or several():
        return 0
    found = min(parts, torch.get_num_threads())
    return found if found > 1 else 0


class Forked:
    """Processes with one thread each; they end with this one, whatever ends it.

    Args:
        number: How many.
        work: Called with what is asked for. It sees what this process holds now, and what it keeps is its own. What it
            returns is pickled; what it raises is raised here.

    Raises:
        OSError: The system makes no more processes.
    """

    def __init__(self, number: int, work: Work) -> None:
        context = multiprocessing.get_context("fork")
        self._numbers = count()
        self._expected: dict[Any, int] = {}  # connection -> the number of the call that it will answer
        self._processes: dict[Any, BaseProcess] = {}
        try:
            for _ in range(number):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, work), daemon=True)
                with warnings.catch_warnings():  # torch's threads are asleep, and the child makes none
                    warnings.simplefilter("ignore", DeprecationWarning)
                    process.start()
                theirs.close()
                self._processes[ours] = process
        except OSError:
            self.close()
            raise

    def results(self, asked: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """What comes of each call, in order; what was not yet begun when nobody wants more is not begun.

        Raises:
            ResourceFault: A process was ended from outside. Others as the work does.
        """
        waiting = [(next(self._numbers), one) for one in asked]
        order, found = [number for number, _ in waiting], {}
        for number in order:
            while number not in found:
                for connection in self._processes:
                    if waiting and connection not in self._expected:
                        self._expected[connection], one = waiting.pop(0)
                        self._send(connection, one)
                for connection in wait([*self._expected]):
                    found[self._expected.pop(connection)] = self._receive(connection)
            answer = found.pop(number)
            if isinstance(answer, _Raised):
                raise answer.error
            yield answer

    def _send(self, connection: Connection, asked: Any) -> None:
        try:
            connection.send(asked)
        except OSError:
            raise self._fault(connection) from None

    def _receive(self, connection: Any) -> Any:
        try:
            return pickle.loads(connection.recv_bytes())
        except (EOFError, OSError):
            raise self._fault(connection) from None

    def _fault(self, connection: Connection) -> ResourceFault:
        process = self._processes[connection]
        process.join(1)
        return ResourceFault(
            f"a process of the search was ended (exit code {process.exitcode}); it may have run out of memory. Set "
            "OMP_NUM_THREADS=1 to search in one process"
        )

    def close(self) -> None:
        """End them."""
        for connection, process in self._processes.items():
            process.kill()  # they hold nothing that needs an end
            process.join()
            connection.close()
        self._processes.clear()
        self._expected.clear()


@dataclass(frozen=True)
class _Raised:
    """In place of an answer: why there is none."""

    error: Exception


def _serve(connection: Connection, work: Work) -> None:
    """Answer until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C, and ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None
    while connection in wait([connection, parent.sentinel]):
        try:
            asked = connection.recv()
        except (EOFError, OSError):
            break
        try:
            answer = work(*asked)
        except Exception as error:  # it is for the parent to say, as if the work were its own
            answer = _Raised(error)
        connection.send_bytes(_pickled(answer))
    os._exit(0)


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        """Tensors by their values; torch would share memory, which costs more than such small ones are worth."""
        return (torch.from_numpy, (value.numpy(),)) if isinstance(value, torch.Tensor) else NotImplemented


def _pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()
