"""Output files that appear whole or not at all; devices and pipes are written to as streams."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadInput, ResourceFault
from .locks import lock_beside, locked, parents, without_left_lock
from .places import (
    Ours,
    check_file,
    check_inputs,
    check_parent,
    link_note,
    real,
    refuse_foreign_file,
    refuse_odd,
    stream_of,
)
from .temporary import fill, mode_of, open_new, remove_left, sync_folder, temporary_beside

UNLINKED = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}  # without hard links


@dataclass(frozen=True)
class OutputFile:
    """A file that will be written, while its lock is held.

    Attributes:
        output: As the user named it.
        place: Where that leads to; None for a stream.
        overwrite: Replace a file of ours that is there.
        ours: Whether a file has the mark of what will be written.
    """

    output: Path
    place: Path | None
    overwrite: bool
    ours: Ours

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the place."""
        return () if self.place is None else link_note(self.output, self.place)

    def write(self, data: bytes) -> None:
        """Put the whole file into its place, or send it down the stream.

        Raises:
            ResourceFault: The disk failed, or something appeared at the place that nobody allowed to replace.
        """
        with _faults(self.output):
            if self.place is None:
                _send(self.output, data)
            elif os.path.lexists(self.place):
                self._refuse_appeared(self.place)
                _put(self.place, data, replace=True)
            else:
                _put(self.place, data, replace=False)

    def _refuse_appeared(self, place: Path) -> None:
        try:
            if not self.overwrite:
                raise BadInput("there was nothing")
            refuse_odd(self.output, place)
            refuse_foreign_file(self.output, place, self.ours)
        except BadInput:
            raise _appeared(self.output) from None


def _appeared(output: Path) -> ResourceFault:
    return ResourceFault(
        f"{output}: appeared while the work went on, so it is not replaced and nothing was written; choose another "
        "output"
    )


@contextmanager
def output_file(output: Path, inputs: Iterable[Path], overwrite: bool, ours: Ours) -> Iterator[OutputFile]:
    """Check a file that a user named and hold its lock, from before the work until it is written.

    Raises:
        BadInput: As `check_file`. ResourceFault: It cannot be written, or another process is writing it.
    """
    inputs = [*inputs]
    with without_left_lock(real(output)):
        place = check_file(output, inputs, overwrite, ours)
    if place is None:
        yield OutputFile(output, None, overwrite, ours)
        return
    with parents(output, place.parent), locked(output, lock_beside(place)):
        check_file(output, inputs, overwrite, ours)  # again: it may have been written while we got the lock
        with _faults(output):
            remove_left(place.parent, place.name)
        yield OutputFile(output, place, overwrite, ours)


def put_file(path: Path, data: bytes) -> None:
    """Write a file within a folder of ours, whole or not at all; what is there is replaced.

    Raises:
        ResourceFault: The disk failed, or a link, a folder or a device is in its place.
    """
    with _faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
            raise ResourceFault(f"{path}: a link or no regular file, which uwm never writes; remove it")
        _put(path, data, replace=True)


def _put(path: Path, data: bytes, replace: bool) -> None:
    """Write beside, then rename; without `replace` never over anything. The permissions of what is replaced stay."""
    temporary = temporary_beside(path)
    descriptor = open_new(temporary, mode_of(path) if replace else None)
    try:
        fill(descriptor, data)
        if replace:
            temporary.replace(path)
        else:
            _rename_to_free(temporary, path)
        sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


def _rename_to_free(temporary: Path, path: Path) -> None:
    """Give a file its name where there is none of that name; a plain rename would replace what appeared."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise _appeared(path) from None
    except OSError as error:
        if error.errno not in UNLINKED:
            raise
        if os.path.lexists(path):
            raise _appeared(path) from None
        temporary.rename(path)


# ---------------------------------------------------------------- streams, and files that are added to


def _send(output: Path, data: bytes) -> None:
    """Write to a stream of this process, after what it has been sent already, or to a device or pipe."""
    stream = stream_of(output)
    if isinstance(stream, int):
        for known in (sys.stdout, sys.stderr):
            known.flush()
        stream = os.dup(stream)
    if stream is None:
        raise ResourceFault(f"{output}: was a device or pipe and is none any more; nothing was written")
    with open(stream, "wb") as opened:
        opened.write(data)


@contextmanager
def appended_file(output: Path, inputs: Iterable[Path] = ()) -> Iterator[OutputText]:
    """Check a text file that is added to, which may have content of others, before the work.

    Raises:
        BadInput: It is an input or lies in one, or is a folder, a socket or a disk.
        ResourceFault: It cannot be written.
    """
    if stream_of(output) is not None:
        yield OutputText(output, None)
        return
    place = real(output)
    check_inputs(output, place, inputs)
    if os.path.lexists(place):
        refuse_odd(output, place)
    check_parent(output, place)
    with parents(output, place.parent):
        _probe(output, place)
        yield OutputText(output, place)


def _probe(output: Path, place: Path) -> None:
    """Find out whether a file can be added to: by opening it, or where there is none, by its lock."""
    if os.path.lexists(place):
        with _faults(output), place.open("ab"):
            return
    with locked(output, lock_beside(place)):
        return


@dataclass(frozen=True)
class OutputText:
    """A text file that is added to: as the user named it, and where that leads to; None for a stream."""

    output: Path
    place: Path | None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the place."""
        return () if self.place is None else link_note(self.output, self.place)

    def write(self, data: bytes) -> None:
        """Add to the end. Raises ResourceFault when the disk fails."""
        with _faults(self.output):
            if self.place is None:
                return _send(self.output, data)
            with self.place.open("ab") as stream:
                stream.write(data)


def refuse_one_place(outputs: Iterable[Path]) -> None:
    """Refuse several outputs that lead to one file. Raises BadInput."""
    known: dict[Path, Path] = {}
    for output in outputs:
        if stream_of(output) is not None:
            continue
        place = real(output)
        if place in known:
            raise BadInput(f"{known[place]} and {output} are one file; choose another for one of them")
        known[place] = output


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    """Errors of the disk as ResourceFault with the file's name."""
    try:
        yield
    except OSError as error:
        raise ResourceFault(f"{path}: could not write: {error.strerror or error}") from error
