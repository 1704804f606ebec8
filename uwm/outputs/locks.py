"""Locks on outputs, which know their owner: two runs never write one output at once, whatever their process ids."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from ..errors import BadInput, ResourceFault
from ..escaping import clean
from .temporary import identity, short, temporary_beside

try:
    import fcntl
except ImportError:  # Windows: the owner that the file names decides
    fcntl = None  # type: ignore[assignment]

UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
BUSY = {errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK}
TRIES = 10  # a lock file may be taken away by its last holder between our opening it and locking it
PROCESS = Path("/proc")
HELD: set[int] = set()  # descriptors of locks

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Attributes:
        pid: Its process id in its own namespace, so that it says little by itself: in a container most are 1.
        host: The machine's name.
        boot: Of the kernel's start; empty where the system does not tell, like the next two.
        namespace: In which the process id counts.
        started: When the process began, in ticks since the boot.
    """

    pid: int
    host: str
    boot: str = ""
    namespace: str = ""
    started: str = ""

    @classmethod
    def ourselves(cls) -> Owner:
        """This process."""
        boot, namespace = "", ""
        with suppress(OSError):
            boot = (PROCESS / "sys/kernel/random/boot_id").read_text().strip()
            namespace = os.readlink(PROCESS / "self/ns/pid")
        return cls(os.getpid(), socket.gethostname(), boot, namespace, _started("self"))

    def is_gone(self) -> bool:
        """Whether the process has surely ended; False where that cannot be known from here."""
        here = Owner.ourselves()
        if self.host != here.host:
            return False
        if self.boot != here.boot:
            return True  # the machine was started anew
        if self.namespace != here.namespace:
            return False
        return not _is_alive(self.pid) or self.started != _started(str(self.pid))

    def __str__(self) -> str:
        return f"process {self.pid} on {clean(self.host)}"


def _started(process: str) -> str:
    """Field 22 of its stat, counted after the name in brackets, which may hold anything."""
    try:
        return (PROCESS / process / "stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def locked(output: Path, lock: Path) -> Iterator[None]:
    """Hold the lock of an output.

    The kernel's own lock (flock) decides, which ends with the process that holds it, in whatever namespace it runs. On
    file systems without it, the owner decides that the lock file names.

    Args:
        output: What is locked, for messages.
        lock: The lock file; it is there while the lock is held.

    Raises:
        ResourceFault: Another process holds the lock, or nothing can be written there.
    """
    try:
        descriptor = _take(output, lock)
    except OSError as error:
        raise ResourceFault(f"{output}: cannot be written: {error.strerror or error} ({lock.parent})") from error
    HELD.add(descriptor)
    try:
        yield
    finally:
        HELD.discard(descriptor)
        if identity(lock) == _identity_of(descriptor):
            with suppress(OSError):
                lock.unlink()
        os.close(descriptor)


@contextmanager
def without_left_lock(output: Path) -> Iterator[None]:
    """While the body checks an output; if it refuses, remove the lock file of a process that was killed at its end."""
    try:
        yield
    except BadInput:
        with suppress(ResourceFault, OSError, ValueError):  # of another process, or no place for a file at all
            lock = lock_beside(output)
            if lock.is_file() and not lock.is_symlink():
                with locked(output, lock):
                    pass
        raise


def _let_go() -> None:
    """In a process that was forked: the lock is its parent's, and ends with it."""
    for descriptor in HELD:
        os.close(descriptor)
    HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def lock_beside(output: Path) -> Path:
    """Where the lock file of an output lies."""
    return output.with_name(f".uwm-{short(output.name)}.lock")


def _take(output: Path, lock: Path) -> int:
    for _ in range(TRIES):
        descriptor, is_new = _open(lock)
        try:
            _refuse_planted(output, lock, descriptor)
            held = _hold(output, lock, descriptor, is_new)
        except BaseException:
            os.close(descriptor)
            raise
        if held:
            return descriptor
        os.close(descriptor)
    raise ResourceFault(f"{output}: its lock {lock} changes all the time; try again, or choose another output")


def _open(lock: Path) -> tuple[int, bool]:
    """The lock file, made where there is none, and whether it was; never what a link leads to."""
    safe = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with suppress(FileExistsError):
        return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL | safe, 0o644), True
    try:
        return os.open(lock, os.O_RDWR | safe), False
    except PermissionError:
        return os.open(lock, os.O_RDONLY | safe), False  # left by another user; it can be locked all the same
    except FileNotFoundError:
        return os.open(lock, os.O_RDWR | os.O_CREAT | safe, 0o644), False


def _refuse_planted(output: Path, lock: Path, descriptor: int) -> None:
    """Refuse what somebody put into the lock's place, so that we would write into it. Raises ResourceFault."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        raise ResourceFault(f"{output}: {lock} is a link or no regular file, which uwm never makes; remove it")


def _hold(output: Path, lock: Path, descriptor: int, is_new: bool) -> bool:
    """Lock an open lock file; False where it is no longer the one at its place. Raises ResourceFault when held."""
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in BUSY:
            raise ResourceFault(_held(output, _read(descriptor))) from None
        if error.errno not in UNSUPPORTED:
            raise
        if not is_new and not _take_over(output, lock, descriptor):
            return False
    if identity(lock) != _identity_of(descriptor):
        return False
    with suppress(OSError):  # another user's, which can only be read
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(asdict(Owner.ourselves())).encode())
    return True


def _take_over(output: Path, lock: Path, descriptor: int) -> bool:
    """Where there is no flock: take a lock file away whose owner is gone; False, for it is then made anew."""
    owner = _read(descriptor)
    if owner is None or not owner.is_gone():
        raise ResourceFault(f"{_held(output, owner)}; if it is gone, remove {lock}")
    aside = temporary_beside(lock)
    lock.rename(aside)
    if identity(aside) != _identity_of(descriptor):
        aside.rename(lock)  # another process was faster, and this is its lock
        raise ResourceFault(_held(output, None))
    aside.unlink()
    return False


def _held(output: Path, owner: Owner | None) -> str:
    return f"{output}: {owner or 'another process'} is writing it now; wait for it or choose another output"


def _read(descriptor: int) -> Owner | None:
    """The owner that a lock file names; None where it names none (yet)."""
    try:
        owner = Owner(**json.loads(os.pread(descriptor, 4096, 0)))
    except (OSError, ValueError, TypeError, RecursionError, AttributeError):
        return None
    pid, *texts = astuple(owner)
    return owner if type(pid) is int and 0 < pid < 2**31 and all(isinstance(text, str) for text in texts) else None


def _identity_of(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


@contextmanager
def parents(output: Path, folder: Path) -> Iterator[None]:
    """Make the folders that an output needs; at the end those that were made go again where they are empty.

    Raises:
        ResourceFault: It cannot be made.
    """
    made: list[Path] = []
    try:
        for place in reversed([place for place in (folder, *folder.parents) if not place.is_dir()]):
            _make(place, made, output)
        yield
    finally:
        for place in reversed(made):
            with suppress(OSError):
                place.rmdir()


def _make(place: Path, made: list[Path], output: Path) -> None:
    """Make one folder where there is none, and note it."""
    try:
        place.mkdir()
        made.append(place)
    except OSError as error:
        if not place.is_dir():  # it may have been made by another process meanwhile
            raise ResourceFault(f"{output}: cannot be written: {error.strerror or error} ({place})") from error
