"""Processes that read and prepare images for an accelerator, where threads hold each other up.

A thread holds Python's lock for part of the time that preparing an image takes, so on many processors threads wait for
each other, and what feeds the accelerator waits with them. Of an image from a process only its values are read.

They are not `multiprocessing`'s: those run the user's program anew, or are forked from one that has a GPU's context
and other threads. Nor do they share memory, of which a container may have 64 MB. One process of its own loads what
preprocessing needs and forks the others, so that they have it in common; each answers through a socket.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from io import BufferedRWPair
from pathlib import Path

import numpy as np
import torch

from ..errors import ResourceFault
from ..models import Model
from ..models.kept import Source
from . import reading_server
from .reading import Found
from .reading_server import READY, receive, send, settings

AFTER = 1.0  # seconds of reading after which processes are begun, which takes 3 s of one processor
ALONE = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # one processor each, and no GPU
END = 10.0  # seconds that they are given to end by themselves

logger = logging.getLogger(__name__)


class ReadingProcesses:
    """Processes that read images for threads; they end with this one, whatever ends it.

    They are begun by the first call that comes `AFTER` seconds after this was made, and threads read until they are
    ready.

    Args:
        model: What it does to images is done there.
        count: How many.
    """

    def __init__(self, model: Model, count: int) -> None:
        self._model = model
        self._count = count
        self._made = time.monotonic()
        self._lock = threading.Lock()
        self._ready: queue.SimpleQueue[BufferedRWPair] = queue.SimpleQueue()
        self._streams: list[BufferedRWPair] = []
        self._server: subprocess.Popen[bytes] | None = None
        self._starter: threading.Thread | None = None
        self._closed = not sys.platform.startswith("linux") or not sys.executable

    def read(self, sources: Sequence[Source], only_read: bool) -> Found | None:
        """As `read_images`, in a process; None where that is for the thread to do.

        Raises:
            ResourceFault: The process was ended from outside.
        """
        self._begin()
        if not all(isinstance(source, Path) for source in sources):
            return None  # what reads an image may hold a whole data set
        try:
            stream = self._ready.get_nowait()
        except queue.Empty:
            return None
        try:
            send(stream, (sources, only_read))
            answer = receive(stream)
        except (OSError, EOFError, pickle.UnpicklingError):
            raise ResourceFault(
                "a process that read images was ended; it may have run out of memory: try fewer --workers"
            ) from None
        self._ready.put(stream)
        if isinstance(answer, Exception):
            raise answer
        found = (torch.from_numpy(one) if isinstance(one, np.ndarray) else one for one in answer)
        return dict(zip(sources, found, strict=True))

    def _begin(self) -> None:
        with self._lock:
            if self._starter is None and not self._closed and time.monotonic() - self._made >= AFTER:
                self._starter = threading.Thread(target=self._start)
                self._starter.start()

    def _start(self) -> None:
        """Begin the processes, and hand each to the threads when it is ready."""
        try:
            for stream in self._serving(pickle.dumps((self._model.preprocessor(), settings()))):
                if stream.read(len(READY)) == READY:
                    self._ready.put(stream)
            if not self._closed:
                logger.info("%d of %d processes that read images have begun", self._ready.qsize(), self._count)
        except Exception as error:  # what preprocesses cannot be pickled, or the system makes no more processes
            logger.info("images are read by threads: no process for it could be begun (%s)", error)

    def _serving(self, given: bytes) -> list[BufferedRWPair]:
        """Ways to processes that are being begun; none where this was closed meanwhile."""
        pairs = [socket.socketpair() for _ in range(self._count)]
        self._streams = [ours.makefile("rwb") for ours, _ in pairs]
        with contextlib.ExitStack() as ends:  # ours stay open by the streams
            for end in (end for pair in pairs for end in pair):
                ends.enter_context(end)
            descriptors = [theirs.fileno() for _, theirs in pairs]
            with self._lock:
                if self._closed:
                    return []
                self._server = _begun(descriptors)
        assert self._server.stdin is not None
        with self._server.stdin as stream:
            stream.write(given)
        return self._streams

    def __enter__(self) -> ReadingProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        """End them."""
        with self._lock:
            self._closed = True
        if self._starter is None:
            return
        if self._server is not None and self._starter.is_alive():
            self._server.kill()  # it loads, and the others are not there yet
        self._starter.join()
        for stream in self._streams:
            with contextlib.suppress(OSError):
                stream.close()
        if self._server is not None:
            try:
                self._server.wait(END)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()


def _begun(descriptors: list[int]) -> subprocess.Popen[bytes]:
    """A Python that serves these sockets, with this one's modules and without its terminal."""
    path = [str(place) for place in sys.path]
    code = f"import sys; sys.path[:] = {path!r}; from {reading_server.__name__} import serve; serve({descriptors!r})"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=descriptors,
        env=os.environ | ALONE,
        start_new_session=True,  # Ctrl-C is for the parent
    )
