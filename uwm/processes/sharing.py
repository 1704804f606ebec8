"""Which part of a job this process does, and the parts of all put together in the order of one process."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from ..errors import BadInput
from .group import current

Item = TypeVar("Item")


def several() -> bool:
    """Whether this process works in a group."""
    return current() is not None


def is_first() -> bool:
    """Whether this process prints, writes and holds locks: the first of a group, or one by itself."""
    group = current()
    return group is None or group.rank == 0


def is_own(number: int) -> bool:
    """Whether this process does the batch of this number, from 0: they go round."""
    group = current()
    return group is None or number % group.count == group.rank


def own_part(items: Sequence[Item]) -> Sequence[Item]:
    """Those of all batches that this process does."""
    group = current()
    return items if group is None else items[group.rank :: group.count]


def in_order(results: Iterable[Item], label: str) -> list[Item]:
    """The results of all batches in the order of one process.

    Args:
        results: Of this process's batches, those of `own_part`.
        label: What it is about; every process gives the same.
    """
    group = current()
    if group is None:
        return [*results]
    found = group.exchange([*results], label)
    return [found[n % group.count][n // group.count] for n in range(sum(map(len, found)))]


def in_rounds(results: Iterable[Item | None], label: str) -> Iterator[Item]:
    """As `in_order`, while the batches are made: after each process has done one, all get what these came to.

    Args:
        results: One for every batch of the job; None for those of the other processes.
        label: As there.
    """
    group = current()
    if group is None:
        yield from results  # type: ignore[misc]
        return
    mine, number = None, -1
    for number, result in enumerate(results):
        mine = result if is_own(number) else mine
        if number % group.count == group.count - 1:
            yield from group.exchange(mine, label)
            mine = None
    if left := (number + 1) % group.count:
        yield from group.exchange(mine, label)[:left]


def from_first(make: Callable[[], Item], label: str) -> Item:
    """What the first process makes; the others make nothing and get it."""
    group = current()
    if group is None:
        return make()
    found: Item = group.exchange(make() if group.rank == 0 else None, label)[0]
    return found


@contextmanager
def workspace(output: Path, keep: Iterable[Path]) -> Iterator[Path]:
    """Where this process may write: the first one to `output`, each other to a folder of its own that vanishes.

    Args:
        output: A file or folder.
        keep: What of it, and beside it, is read again where a job goes on; every process finds it as the first does.

    Raises:
        BadInput: This process cannot see what there is, as on a machine without the file system of the first.
    """
    group = current()
    if group is None:
        yield output
        return
    there = group.exchange([(path, _files(path)) for path in keep], "what there is")[0]
    if group.rank == 0:
        group.exchange(None, "copied")  # nothing changes before the others have it
        yield output
        return
    with TemporaryDirectory() as place:
        for path, files in there:
            if _files(path) != files:
                raise BadInput(f"{path}: not the same for every process; a job that goes on needs a shared file system")
            for name, _ in files:
                copy = Path(place) / path.relative_to(output.parent) / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path / name, copy)
        group.exchange(None, "copied")
        yield Path(place) / output.name


def _files(path: Path) -> list[tuple[str, int]]:
    """Names and sizes of the files in a folder, or of the one file, whose name is then empty."""
    if path.is_file():
        return [("", path.stat().st_size)]
    return sorted((str(p.relative_to(path)), p.stat().st_size) for p in path.rglob("*") if p.is_file())
