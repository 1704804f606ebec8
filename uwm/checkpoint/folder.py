"""Output folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import BadInput, ResourceFault

MANIFEST = "uwm.json"  # in every folder that uwm writes

logger = logging.getLogger(__name__)


def check_output(output: Path, inputs: list[Path], overwrite: bool) -> None:
    """Refuse an unusable output before the long work starts.

    Raises:
        BadInput: It exists (without `overwrite`), is a file, is or contains an input, or is a folder that uwm did not
            write, which is never replaced.
        ResourceFault: Its parent cannot be written to.
    """
    here = output.resolve()
    for source in inputs:
        if here == source.resolve() or here in source.resolve().parents:
            raise BadInput(f"{output}: is the input itself or a folder around it ({source}); choose another output")
    if output.exists() and not output.is_dir():
        raise BadInput(f"{output}: exists and is no folder; choose another output")
    if output.exists() and not overwrite:
        raise BadInput(f"{output}: exists; pass --overwrite to replace it, or choose another output")
    if output.exists() and any(output.iterdir()) and not (output / MANIFEST).is_file():
        raise BadInput(f"{output}: exists and was not written by uwm (no {MANIFEST}), so it is not replaced")
    parent = next(p for p in output.absolute().parents if p.exists())
    if not os.access(parent, os.W_OK):
        raise ResourceFault(f"{parent}: not writable, so {output} cannot be made")


@contextmanager
def passing_folder(output: Path) -> Iterator[Path]:
    """A temporary sibling of `output` that vanishes in the end, to try what will be written there.

    Raises:
        ResourceFault: As `new_folder`.
    """
    temporary = output.absolute().parent / f".uwm-{os.getpid()}-{output.name}"
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        _clear_stale(output.absolute())
        temporary.mkdir()
        yield temporary
    except OSError as error:
        raise ResourceFault(f"{output}: could not write: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A temporary sibling of `output` that takes its place when the body succeeds, and vanishes when it fails.

    Raises:
        ResourceFault: Another live process is writing the same output, or the disk failed.
    """
    output = output.absolute()
    temporary = output.parent / f".uwm-{os.getpid()}-{output.name}"
    retired = temporary.with_name(temporary.name + ".old")
    ours = False
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _clear_stale(output)
        temporary.mkdir()
        ours = True
        yield temporary
        _sync(temporary)
        if output.exists():
            output.rename(retired)
        temporary.rename(output)
        _sync(output.parent)
        shutil.rmtree(retired, ignore_errors=True)
    except OSError as error:
        raise ResourceFault(f"{output}: could not write: {error.strerror or error}") from error
    finally:
        if ours:
            if retired.exists() and not output.exists():
                retired.rename(output)
            shutil.rmtree(temporary, ignore_errors=True)


def _clear_stale(output: Path) -> None:
    """Remove what dead processes left of this output; refuse while a live one is at work."""
    for path in output.parent.glob(".uwm-*"):
        found = re.fullmatch(rf"\.uwm-(\d+)-{re.escape(output.name)}(\.old)?", path.name)
        if not found:
            continue
        if _alive(int(found[1])):
            raise ResourceFault(f"{output}: process {found[1]} is writing it now; wait for it or choose another output")
        if found[2] and not output.exists():
            path.rename(output)  # stopped between the two renames: the earlier output comes back
        else:
            logger.warning("removing %s, left by process %s which is gone", path, found[1])
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all. Raises ResourceFault when the disk fails."""
    temporary = path.with_name(f".uwm-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ResourceFault(f"{path}: could not write: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
