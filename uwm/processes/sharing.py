"""Which part of a job this process does, and the parts of all put together in the order of one process."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from ..errors import BadInput, UwmError
from .group import Group, current

Item = TypeVar("Item")


def several() -> bool:
    """Whether this process works in a group."""
    return current() is not None


def is_first() -> bool:
    """Whether this process prints, writes and holds locks: the first of a group, or one by itself."""
    group = current()
    return group is None or group.rank == 0


def count_of_processes() -> int:
    """How many processes share the job: 1 without a group."""
    group = current()
    return 1 if group is None else group.count


def is_own(number: int) -> bool:
    """Whether this process does the batch of this number, from 0: they go round."""
    group = current()
    return group is None or number % group.count == group.rank


def own_part(items: Sequence[Item]) -> Sequence[Item]:
    """Those of all batches that this process does."""
    group = current()
    return items if group is None else items[group.rank :: group.count]


@dataclass(frozen=True)
class _Failed:
    """In place of the result of a batch: why there is none."""

    batch: int
    error: UwmError


def in_order(results: Iterable[Item], label: str) -> list[Item]:
    """The results of all batches in the order of one process.

    Args:
        results: Of this process's batches, those of `own_part`.
        label: What it is about; every process gives the same.

    Raises:
        UwmError: The first that any process came upon, in all of them, so that they go on alike.
    """
    group = current()
    if group is None:
        return [*results]
    mine: list[Item | _Failed] = []
    try:
        for result in results:
            mine.append(result)
    except UwmError as error:
        mine.append(_Failed(group.rank + len(mine) * group.count, error))
    found = group.exchange(mine, label)
    _raise_first(part[-1] for part in found if part)
    return [found[n % group.count][n // group.count] for n in range(sum(map(len, found)))]


def in_rounds(results: Iterable[Item | None], label: str) -> Iterator[Item]:
    """As `in_order`, while the batches are made: after each process has done one, all get what these came to.

    Args:
        results: One for every batch of the job; None for those of the other processes.
        label, Raises: As there.
    """
    group = current()
    if group is None:
        yield from results  # type: ignore[misc]
        return
    mine: Any = None
    number = 0
    for result in _caught(results):
        mine = result if is_own(number) or isinstance(result, _Failed) else mine
        number += 1
        if number % group.count == 0 or isinstance(result, _Failed):
            yield from _round(group, mine, label, group.count)
            mine = None
    if number % group.count:
        yield from _round(group, mine, label, number % group.count)


def _caught(results: Iterable[Item]) -> Iterator[Item | _Failed]:
    """The results, and in place of an error what failed."""
    number = 0
    try:
        for result in results:
            yield result
            number += 1
    except UwmError as error:
        yield _Failed(number, error)


def _round(group: Group, mine: Any, label: str, batches: int) -> list[Any]:
    found = group.exchange(mine, label)
    _raise_first(found)
    return found[:batches]


def _raise_first(results: Iterable[Any]) -> None:
    failed = [result for result in results if isinstance(result, _Failed)]
    if failed:
        raise min(failed, key=lambda one: one.batch).error


def from_first(make: Callable[[], Item], label: str) -> Item:
    """What the first process makes; the others make nothing and get it. Raises UwmError in all of them."""
    group = current()
    if group is None:
        return make()
    found: list[Item] = in_order((make() for _ in range(group.rank == 0)), label)
    return found[0]


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
    kept = [*keep]
    there = from_first(lambda: [(path, _files(path)) for path in kept], "what there is")
    with nullcontext() if group.rank == 0 else TemporaryDirectory() as folder:
        place = output if folder is None else Path(folder) / output.name
        in_order((_copied(there, output, place) for _ in range(1)), "copied")  # nothing changes before all have it
        yield place


def _copied(there: Iterable[tuple[Path, list[tuple[str, int]]]], output: Path, place: Path) -> int:
    """Copy files in `output`, or beside it, to `place` or beside that, and give their number.

    Raises:
        BadInput: They are not there.
    """
    for path, files in there if place != output else ():
        if _files(path) != files:
            raise BadInput(f"{path}: not the same for every process; a job that goes on needs a shared file system")
        for name, _ in files:
            copy = place.parent / path.relative_to(output.parent) / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path / name, copy)
    return sum(len(files) for _, files in there)


def _files(path: Path) -> list[tuple[str, int]]:
    """Names and sizes of the files in a folder, or of the one file, whose name is then empty."""
    if path.is_file():
        return [("", path.stat().st_size)]
    return sorted((str(p.relative_to(path)), p.stat().st_size) for p in path.rglob("*") if p.is_file())
