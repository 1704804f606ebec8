"""An input file that is held open: all of it is read from one descriptor, and a change meanwhile is seen."""

from __future__ import annotations

import hashlib
import io
import os
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import ResourceFault

BLOCK = 1 << 23  # bytes hashed at once


@dataclass(frozen=True)
class Identity:
    """Which file a path leads to and when it was changed last; a rename, a link or a new mode move `touched` alone."""

    device: int
    number: int
    size: int
    written: int  # ns
    touched: int  # ns

    @classmethod
    def of(cls, found: os.stat_result) -> Identity:
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def is_same_content(self, other: Identity) -> bool:
        """Whether it can be the same content, as far as times of writing tell."""
        return (self.device, self.number, self.size, self.written) == (
            other.device, other.number, other.size, other.written,
        )  # fmt: skip


class Held:
    """A file held open from when its header was read until what is made of it is written.

    Args:
        path: A regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._descriptor)
        self._lock = threading.Lock()
        self.identity = self._now()
        self._sha256: str | None = None

    @property
    def size(self) -> int:
        """Bytes, when it was opened."""
        return self.identity.size

    def stream(self) -> io.BufferedReader:
        """A stream of its own from the start; closing it leaves the file open."""
        return io.BufferedReader(_Stream(self))

    def read_at(self, begin: int, buffer: memoryview) -> int:
        """Fill a buffer from a byte on, or less at the end of the file; how many bytes were read."""
        if hasattr(os, "preadv"):
            return os.preadv(self._descriptor, [buffer], begin)
        with self._lock:  # Windows, macOS
            os.lseek(self._descriptor, begin, os.SEEK_SET)
            data = os.read(self._descriptor, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read_all(self, begin: int, buffer: np.ndarray) -> bool:
        """Fill a uint8 buffer from a byte on; False where the file ends before."""
        rest = memoryview(buffer.data)
        while rest and (count := self.read_at(begin, rest)):
            rest, begin = rest[count:], begin + count
        return not rest

    def sha256(self) -> str:
        """Of the whole file, read once. Raises ResourceFault where it changed since it was opened."""
        if self._sha256 is None:
            digest, buffer, begin = hashlib.sha256(), np.empty(BLOCK, np.uint8), 0
            while count := self.read_at(begin, buffer.data):
                digest.update(buffer.data[:count])
                begin += count
            self.demand_unchanged()
            self._sha256 = digest.hexdigest()
        return self._sha256

    def note(self, sha256: str) -> None:
        """Keep the hash of the file, as it was read from start to end otherwise."""
        self._sha256 = self._sha256 or sha256

    def demand_unchanged(self, sha256: str | None = None) -> None:
        """Refuse a file that was written to, cut or replaced since it was opened.

        Args:
            sha256: Of the file as it was read just now; with it a file that was only linked, renamed or given another
                mode is told from one that was written to.

        Raises:
            ResourceFault: It changed, or is no longer there.
        """
        now = self._now()
        try:
            there = Identity.of(os.stat(self.path))
        except OSError:
            there = None
        other = None not in (sha256, self._sha256) and sha256 != self._sha256
        known = sha256 is not None and sha256 == self._sha256
        same = not other and (now == self.identity or (known and now.is_same_content(self.identity)))
        if not same or there is None or (there.device, there.number) != (now.device, now.number):
            what = "was written to" if not same else "was replaced" if there is not None else "was removed"
            raise ResourceFault(f"{self.path}: {what} while it was read; nothing was written, so start again")

    def _now(self) -> Identity:
        return Identity.of(os.fstat(self._descriptor))


class _Stream(io.RawIOBase):
    """A place in a held file."""

    def __init__(self, held: Held) -> None:
        self._held, self._place = held, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._held.size}[whence]
        if base + offset < 0:
            raise OSError(22, "Invalid argument")
        self._place = base + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = self._held.read_at(self._place, memoryview(buffer))
        self._place += count
        return count
