"""A group of processes without processes: threads that hand each other their values."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

from uwm.processes import joined


class ThreadGroup:
    """One of several threads; what the others get has been pickled, as between processes."""

    def __init__(self, rank, count, barrier, values):
        self.rank, self.count, self._barrier, self._values = rank, count, barrier, values

    def exchange(self, value, label):
        self._values[self.rank] = label, pickle.dumps(value)
        self._barrier.wait(timeout=60)
        found = [*self._values]
        self._barrier.wait(timeout=60)
        assert {own for own, _ in found} == {label}
        return [value if rank == self.rank else pickle.loads(data) for rank, (_, data) in enumerate(found)]


def together(count, work):
    """What `work(rank)` returns, or raises, in each of so many threads of one group."""
    barrier, values = threading.Barrier(count), [None] * count

    def one(rank):
        try:
            with joined(ThreadGroup(rank, count, barrier, values)):
                return work(rank)
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return [*pool.map(one, range(count))]
