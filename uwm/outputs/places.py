"""What may be written where: found out before the work, and again before anything is put in its place."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from ..errors import BadInput, ResourceFault
from ..escaping import clean

MANIFEST = "uwm.json"  # in every folder that uwm writes: our mark
OWN = {MANIFEST, "README.md", "report.html", "uwm_patch.safetensors"}  # what we write beside weights
STREAM = re.compile(r"/dev/(stdout|stderr)|(/dev|/proc/(self|thread-self|\d+))/fd/\d+")
LINKS = 40  # that a path may lead through, as in Linux
Ours = Callable[[Path], bool]  # whether a file has our mark


def real(path: Path) -> Path:
    """Where a path leads to, through all links, whether something is there or not. Raises BadInput for a loop."""
    found = Path(os.path.realpath(path))
    if found.is_symlink():
        raise BadInput(f"{path}: leads through links that lead to themselves; choose another output")
    return found


def link_note(path: Path, found: Path) -> tuple[str, ...]:
    """That an output is a link, and where it leads; nothing where it is none."""
    return (f"{path} is a link; what is written is {found}",) if path.is_symlink() else ()


def check_inputs(output: Path, place: Path, inputs: Iterable[Path]) -> None:
    """Refuse a place that is an input, lies in one, or is a folder around one. Raises BadInput."""
    for source in inputs:
        theirs = Path(os.path.realpath(source))
        if place == theirs or place in theirs.parents:
            raise BadInput(f"{output}: is the input itself or a folder around it ({source}); choose another output")
        if theirs in place.parents:
            raise BadInput(f"{output}: is an input or lies in one ({source}); choose another output")
        if place.exists() and theirs.exists() and os.path.samefile(place, theirs):
            raise BadInput(f"{output}: is the input itself by another name ({source}); choose another output")


# ---------------------------------------------------------------- folders


def check_folder(output: Path, inputs: Iterable[Path] = (), overwrite: bool = False) -> Path:
    """Refuse an unusable output folder before the long work starts; return where it leads to.

    Raises:
        BadInput: It exists (without `overwrite`), is a file, is an input, lies in or contains one, or is a folder that
            uwm did not write, or wrote for something else than weights; such are never replaced.
        ResourceFault: Its parent cannot be written to.
    """
    place = real(output)
    check_inputs(output, place, inputs)
    if os.path.lexists(place):
        if not place.is_dir():
            raise BadInput(f"{output}: exists and is no folder; choose another output")
        if not overwrite:
            raise BadInput(f"{output}: exists; pass --overwrite to replace it, or choose another output")
        refuse_foreign(output, place)
    check_parent(output, place)
    return place


def refuse_foreign(output: Path, place: Path) -> None:
    """Refuse a folder that has something in it and is no edited model with our mark. Raises BadInput."""
    if not any(place.iterdir()):
        return
    if not (place / MANIFEST).is_file() or (place / MANIFEST).is_symlink():
        raise BadInput(f"{output}: exists and was not written by uwm (no {MANIFEST}), so it is not replaced")
    if (kind := kind_of(place)) is not None:
        raise BadInput(f"{output}: exists and holds a {clean(kind)}, so it is not replaced; choose another output")


def kind_of(folder: Path) -> str | None:
    """The kind of a folder that uwm wrote, as its uwm.json says; None where it says none: an edited model."""
    try:
        known = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    kind = known.get("kind") if isinstance(known, dict) else None
    return None if kind is None else str(kind)


def check_parent(output: Path, place: Path) -> None:
    """Refuse a place whose folder cannot be made or written to. Raises ResourceFault."""
    parent = next(p for p in place.parents if os.path.lexists(p))
    if not parent.is_dir():
        raise ResourceFault(f"{parent}: is no folder, so {output} cannot be made")
    if not os.access(parent, os.W_OK):
        raise ResourceFault(f"{parent}: not writable, so {output} cannot be made")


# ---------------------------------------------------------------- files


def check_file(output: Path, inputs: Iterable[Path], overwrite: bool, ours: Ours) -> Path | None:
    """Refuse an unusable output file before the long work starts; return where it leads to, None for a stream.

    Args:
        output: As the user named it.
        inputs: What is read.
        overwrite: Replace a file of ours that exists.
        ours: Whether a file has the mark of what will be written.

    Raises:
        BadInput: It is an input or lies in one, exists (without `overwrite`) or was not written by uwm as a file of
            this kind, belongs to a folder that uwm wrote, or is a folder, a socket or a disk.
        ResourceFault: Its folder cannot be written to.
    """
    if stream_of(output) is not None:
        return None
    place = real(output)
    check_inputs(output, place, inputs)
    if os.path.lexists(place):
        refuse_odd(output, place)
        if not overwrite:
            raise BadInput(f"{output}: exists; pass --overwrite to replace it, or choose another output")
        refuse_foreign_file(output, place, ours)
    check_parent(output, place)
    return place


def refuse_odd(output: Path, place: Path) -> None:
    """Refuse what is no regular file. Raises BadInput."""
    mode = place.lstat().st_mode
    if stat.S_ISDIR(mode):
        raise BadInput(f"{output}: is a folder; choose a file")
    if not stat.S_ISREG(mode):
        raise BadInput(f"{output}: is no regular file, so it is not replaced; choose another output")


def refuse_foreign_file(output: Path, place: Path, ours: Ours) -> None:
    """Refuse a file without our mark, and one that belongs to a folder of ours. Raises BadInput."""
    if place.name in OWN and (place.parent / MANIFEST).is_file():
        raise BadInput(f"{output}: belongs to the folder that uwm wrote there, so it is not replaced")
    if not ours(place):
        raise BadInput(
            f"{output}: exists and was not written by uwm as a file of this kind, so it is not replaced; remove it, or "
            "choose another output"
        )


def stream_of(path: Path) -> int | Path | None:
    """A stream that is written to as it is: a descriptor of this process, or a device or pipe; None for files."""
    for _ in range(LINKS):
        text = os.path.abspath(path)
        if STREAM.fullmatch(text):
            name = os.path.basename(text)
            return int(name) if name.isdecimal() else {"stdout": 1, "stderr": 2}[name]
        if not os.path.islink(text):
            break
        path = Path(os.path.dirname(text), os.readlink(text))
    try:
        mode = path.stat().st_mode
    except OSError:
        return None
    return path if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) else None
