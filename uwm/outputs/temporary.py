"""Temporary files and folders beside their place: unguessable names, made only where nothing is, synced before use."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TEMPORARY = re.compile(r"\.uwm-(?P<old>old-)?[0-9a-f]{16}-(?P<name>.+)", re.DOTALL)
LONGEST = 200  # bytes of a name that a file system takes with our prefix and suffix
UNSYNCED = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF}  # what file systems without fsync answer
Identity = tuple[int, int]  # device and inode

logger = logging.getLogger(__name__)


def short(name: str) -> str:
    """A name that has room for a prefix: itself, or its hash where it is very long."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= LONGEST else hashlib.sha256(encoded).hexdigest()


def temporary_beside(path: Path, kind: str = "") -> Path:
    """A name beside `path` that nobody can know before: a link planted under it would be followed or block us.

    Args:
        kind: ``old-`` for what is moved away and comes back where the work does not end.
    """
    return path.with_name(f".uwm-{kind}{secrets.token_hex(8)}-{short(path.name)}")


def identity(path: Path) -> Identity | None:
    """Which file or folder is at a path itself, links not followed; None for nothing."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def mode_of(path: Path) -> int | None:
    """The permissions of what is at a path itself; None for nothing."""
    try:
        return stat.S_IMODE(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None


def open_new(path: Path, mode: int | None) -> int:
    """Make a new file with a mode (None for the umask's) and open it; nobody can read it before it has its mode.

    Raises:
        FileExistsError: Something is there, be it a link. OSError: The disk failed.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o666 if mode is None else 0o600)
    if mode is not None and hasattr(os, "fchmod"):
        os.fchmod(descriptor, mode)
    return descriptor


def fill(descriptor: int, data: bytes) -> None:
    """Write a file that was opened, sync it and close it. Raises OSError when the disk fails."""
    with open(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        sync(descriptor)


@dataclass(frozen=True)
class Made:
    """A folder that was made: which one, and the mode that the umask gives a folder."""

    identity: Identity | None
    usual: int


@contextmanager
def private_folder(path: Path) -> Iterator[Made]:
    """Make a new folder that only we can enter, and remove what is left of it in the end.

    It is held open: a folder that is removed and made anew can otherwise have the same inode.

    Raises:
        FileExistsError: Something is there, be it a link. OSError: The disk failed.
    """
    path.mkdir()
    try:
        usual = mode_of(path)
        assert usual is not None
        path.chmod(0o700)
        with _held_open(path):
            yield Made(identity(path), usual)
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _held_open(folder: Path) -> Iterator[None]:
    if os.name == "nt":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield
    finally:
        os.close(descriptor)


def remove_left(folder: Path, name: str) -> None:
    """Remove what killed runs left of an output, whose lock is held, and bring back what one of them had moved away.

    Only what is ours by its name and its owner: in a folder that others can write to, anybody can make such names.
    """
    for path in sorted(folder.glob(".uwm-*")):
        found = TEMPORARY.fullmatch(path.name)
        if found is None or found["name"] != short(name) or path.is_symlink() or not _belongs_to_us(path):
            continue
        if found["old"] and not os.path.lexists(folder / name):
            path.rename(folder / name)  # stopped between the two renames: the earlier output comes back
        else:
            logger.warning("removing %s, left by a run that was killed", path)
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or folder of ours as far as that works; a link is not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    try:
        path.unlink()
    except OSError as error:
        logger.info("%s stays: %s", path, error)


def _belongs_to_us(path: Path) -> bool:
    return not hasattr(os, "geteuid") or path.lstat().st_uid == os.geteuid()


def sync(descriptor: int) -> None:
    """Ask the disk to have a file or folder. Raises OSError when it fails."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSYNCED:
            raise
        logger.warning("this file system cannot sync (%s); a power cut may lose what is written now", error.strerror)


def sync_folder(folder: Path) -> None:
    """Ask the disk to have the names in a folder."""
    if os.name == "nt":
        return  # a folder cannot be opened there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Ask the disk to have every file and folder below, and the folder itself last."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            descriptor = os.open(Path(place, name), os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
            try:
                sync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(place))
