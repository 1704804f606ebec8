"""Folders that are filled over time and go on after a kill: those of comparisons and of searches."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import BadInput, ResourceFault
from .locks import locked, parents
from .places import check_inputs, check_parent, kind_of, real
from .temporary import TEMPORARY, logger, remove

LOCK = ".uwm.lock"  # in the folder: the one around it may be somebody else's


@contextmanager
def filled_folder(output: Path, kind: str, holds: str, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """Check a folder and hold its lock, from before the work until its end; made where there is none.

    Args:
        output: As the user named it.
        kind: What its uwm.json calls it.
        holds: The same in words for errors, such as ``comparison``.
        inputs: What is read.

    Yields:
        Where the output leads to. A folder that was made and stayed empty goes again.

    Raises:
        BadInput: It is an input, lies in one or contains one, has something in it that is not of this kind, or a link.
        ResourceFault: It cannot be written, or another process is writing it.
    """
    place = check_filled(output, kind, holds, inputs)
    with parents(output, place), locked(output, place / LOCK):
        _remove_left(place)
        yield place


def check_filled(output: Path, kind: str, holds: str, inputs: Iterable[Path] = ()) -> Path:
    """Refuse a folder that cannot be filled; return where it leads to. Nothing is written. Raises BadInput."""
    place = real(output)
    check_inputs(output, place, inputs)
    if not os.path.lexists(place):
        check_parent(output, place)
        return place
    if not place.is_dir():
        raise BadInput(f"{output}: exists and is no folder; choose another output")
    if not os.access(place, os.W_OK):
        raise ResourceFault(f"{output}: not writable")
    filled = [path for path in place.iterdir() if path.name != LOCK and not TEMPORARY.fullmatch(path.name)]
    if filled and kind_of(place) != kind:
        raise BadInput(f"{output}: exists and holds no {holds}; choose another output")
    for path in place.rglob("*"):
        mode = path.lstat().st_mode
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            raise BadInput(f"{path}: a link or no regular file, which uwm never writes; remove it")
    return place


def _remove_left(place: Path) -> None:
    """Remove what killed runs left of single files; folders are seen to when they are made again."""
    for path in place.rglob(".uwm-*"):
        if TEMPORARY.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            logger.warning("removing %s, left by a run that was killed", path)
            remove(path)
