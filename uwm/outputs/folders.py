"""Output folders that appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadInput, ResourceFault
from .locks import lock_beside, locked, parents, without_left_lock
from .places import MANIFEST, check_folder, link_note, real, refuse_foreign
from .temporary import (
    Made,
    identity,
    mode_of,
    private_folder,
    remove_left,
    sync_folder,
    sync_tree,
    temporary_beside,
)


@dataclass(frozen=True)
class OutputFolder:
    """A folder that will be written, while its lock is held.

    Attributes:
        output: As the user named it.
        place: Where that leads to.
        overwrite: Replace a folder of ours that is there.
        marked: Only what has our mark is replaced; not asked of folders within a folder of ours.
    """

    output: Path
    place: Path
    overwrite: bool = False
    marked: bool = True

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the place."""
        return link_note(self.output, self.place)

    @contextmanager
    def make(self) -> Iterator[Path]:
        """A temporary folder that takes the output's place when the body succeeds, and vanishes when it fails.

        Raises:
            ResourceFault: The disk failed, the temporary folder vanished, or something appeared at the output's place.
        """
        temporary = temporary_beside(self.place)
        retired = temporary_beside(self.place, "old-")
        try:
            with private_folder(temporary) as made:
                yield temporary
                self._check_whole(temporary, made)
                self._put(temporary, retired, made)
        except OSError as error:
            raise ResourceFault(f"{self.output}: could not write: {error.strerror or error}") from error
        finally:
            if retired.exists() and not os.path.lexists(self.place):
                retired.rename(self.place)

    @contextmanager
    def trial(self) -> Iterator[Path]:
        """A temporary folder that vanishes in the end, to try what will be written. Raises ResourceFault as `make`."""
        temporary = temporary_beside(self.place)
        try:
            with private_folder(temporary):
                yield temporary
        except OSError as error:
            raise ResourceFault(f"{self.output}: could not write: {error.strerror or error}") from error

    def _check_whole(self, temporary: Path, made: Made) -> None:
        """Refuse a temporary folder that was removed or emptied while it was written to."""
        lost = ResourceFault(
            f"{self.output}: its temporary folder {temporary.name} was removed meanwhile; nothing kept"
        )
        if identity(temporary) != made.identity:
            raise lost
        if not (temporary / MANIFEST).is_file():
            return
        promised = json.loads((temporary / MANIFEST).read_bytes()).get("output_sha256") or {}
        if not all((temporary / name).is_file() for name in promised):
            raise lost

    def _put(self, temporary: Path, retired: Path, made: Made) -> None:
        """Put a folder that is whole into its place."""
        there = identity(self.place)
        if there is not None:
            self._refuse_appeared()
            _keep_modes(self.place, temporary)
        mode = mode_of(self.place)
        sync_tree(temporary)
        temporary.chmod(made.usual if mode is None else mode)
        if there is not None:
            self.place.rename(retired)
            if identity(retired) != there:
                retired.rename(self.place)
                raise self._appeared()
        try:
            temporary.rename(self.place)  # never over a file, nor over a folder that has something in it
        except FileNotFoundError:
            raise
        except OSError as error:
            raise (self._appeared() if os.path.lexists(self.place) else error) from error
        sync_folder(self.place.parent)
        shutil.rmtree(retired, ignore_errors=True)

    def _refuse_appeared(self) -> None:
        """Refuse to replace what nobody allowed to replace: it was not there, or was another, when the work began."""
        if not self.overwrite or not self.place.is_dir():
            raise self._appeared()
        if self.marked:
            try:
                refuse_foreign(self.output, self.place)
            except BadInput:
                raise self._appeared() from None

    def _appeared(self) -> ResourceFault:
        return ResourceFault(
            f"{self.output}: appeared while the work went on, so it is not replaced and nothing was written; choose "
            "another output"
        )


def _keep_modes(old: Path, new: Path) -> None:
    """Give the new folder's files and folders the permissions of those that they replace."""
    for place, folders, files in os.walk(new):
        for name in (*folders, *files):
            path = Path(place, name)
            before = old / path.relative_to(new)
            mode = mode_of(before)
            if mode is not None and not before.is_symlink() and before.is_dir() == path.is_dir():
                path.chmod(mode)


@contextmanager
def output_folder(output: Path, inputs: Iterable[Path] = (), overwrite: bool = False) -> Iterator[OutputFolder]:
    """Check an output and hold its lock, from before the work until it is written.

    Raises:
        BadInput: As `check_folder`. ResourceFault: It cannot be written, or another process is writing it.
    """
    with without_left_lock(real(output)):
        place = check_folder(output, inputs, overwrite)
    with _held(output, place):
        check_folder(output, inputs, overwrite)  # again: it may have been written while we got the lock
        yield OutputFolder(output, place, overwrite)


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder within a folder of ours, which appears whole or not at all, in place of what is there.

    Raises:
        ResourceFault: Another process is writing it, or the disk failed.
    """
    place = real(output)
    with _held(output, place), OutputFolder(output, place, True, marked=False).make() as folder:
        yield folder


@contextmanager
def _held(output: Path, place: Path) -> Iterator[None]:
    with parents(output, place.parent), locked(output, lock_beside(place)):
        try:
            remove_left(place.parent, place.name)
        except OSError as error:
            raise ResourceFault(f"{output}: cannot be written: {error.strerror or error}") from error
        yield
