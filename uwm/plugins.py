"""What installed distributions add to uwm, by entry points; ours are found like anybody's, and keep their names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from importlib.metadata import Distribution, EntryPoint, entry_points
from typing import Any

from .errors import BadInput

OURS = "uwm"  # the distribution
# The first two share names: `uwm compare` takes both.
GROUPS = ("uwm.editors", "uwm.backends", "uwm.detectors", "uwm.trackers")

logger = logging.getLogger(__name__)


class Installed(Mapping[str, Any]):
    """Name -> object, sorted, of every distribution with entry points in a group; each is imported when it is got.

    A name of ours, in any group, is ours alone: what another distribution registers under it is left out.

    Args:
        group: Such as ``uwm.editors``.
        what: What the group's objects are called in errors.
        check: What an object lacks, None for nothing.
        only: The distribution whose objects are wanted.

    Raises:
        BadInput: On getting an object: two have its name, or it cannot be imported or is no such object. The message
            names the distribution.
    """

    def __init__(self, group: str, what: str, check: Callable[[Any], str | None], only: str | None = None) -> None:
        self._what, self._check = what, check
        self._entries: dict[str, list[EntryPoint]] = {}
        found = entry_points()
        taken = {entry.name for of in GROUPS for entry in found.select(group=of) if is_ours(entry)}
        for entry in sorted(found.select(group=group), key=lambda entry: (entry.name, owner(entry))):
            if entry.name in taken and not is_ours(entry):
                logger.warning("%s: its %s %r is left out, for the name is uwm's", owner(entry), what, entry.name)
            elif only in (None, owner(entry)):
                self._entries.setdefault(entry.name, []).append(entry)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> Any:
        first, *others = self._entries[name]
        if others:
            both = f"{owner(first)} and {owner(others[0])}"
            raise BadInput(f"two {self._what}s are called {name!r}, of {both}; uninstall one")
        return _load(first, self._what, self._check)


def is_ours(entry: EntryPoint) -> bool:
    """Whether an entry point is one of uwm's own, of its distribution and within its package."""
    return owner(entry) == OURS and entry.value.partition(":")[0].split(".")[0] == OURS


def owner(entry: EntryPoint) -> str:
    """The distribution that an entry point belongs to."""
    return _name(entry.dist) if entry.dist else "an unnamed distribution"


@lru_cache(maxsize=64)
def _name(distribution: Distribution) -> str:
    """Its name, for which all of its METADATA is parsed, with the README in it; of each object once."""
    return distribution.name


def _load(entry: EntryPoint, what: str, check: Callable[[Any], str | None]) -> Any:
    """The object behind an entry point. Raises as `Installed`."""
    where = f"{what} {entry.name!r} of {owner(entry)} ({entry.value})"
    try:
        found = entry.load()
    except (Exception, SystemExit) as error:  # foreign code may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise BadInput(f"{where} cannot be imported: {reason}; repair or uninstall {owner(entry)}") from error
    if (lack := check(found)) is not None:
        raise BadInput(f"{where}: {lack}")
    if found.name != entry.name:
        raise BadInput(f"{where}: calls itself {found.name!r}; its entry point must have the same name")
    return found
