"""What installed distributions add to uwm, by entry points; ours are found like anybody's."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from .errors import BadInput


def find(group: str, what: str, check: Callable[[Any], str | None], only: str | None = None) -> dict[str, Any]:
    """Name -> object, sorted, of every distribution with entry points in a group.

    Args:
        group: Such as ``uwm.editors``.
        what: What the group's objects are called in errors.
        check: What an object lacks, None for nothing.
        only: The distribution whose objects are wanted; nothing of others is imported.

    Raises:
        BadInput: Two have one name, or one cannot be imported or is no such object; it names the distribution.
    """
    entries = {name: entry for name, entry in _entries(group, what).items() if only in (None, owner(entry))}
    return {name: load(entry, what, check) for name, entry in entries.items()}


def find_one(group: str, what: str, name: str, check: Callable[[Any], str | None]) -> Any:
    """One of them by its name; nothing else is imported. None where there is none. Raises as `find`."""
    entry = _entries(group, what).get(name)
    return None if entry is None else load(entry, what, check)


def names(group: str, what: str) -> list[str]:
    """The names in a group, sorted; nothing is imported."""
    return list(_entries(group, what))


def _entries(group: str, what: str) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in sorted(entry_points(group=group), key=lambda entry: (entry.name, owner(entry))):
        if entry.name in found:
            both = f"{owner(found[entry.name])} and {owner(entry)}"
            raise BadInput(f"two {what}s are called {entry.name!r}, of {both}; uninstall one")
        found[entry.name] = entry
    return found


def owner(entry: EntryPoint) -> str:
    """The distribution that an entry point belongs to."""
    return entry.dist.name if entry.dist else "an unnamed distribution"


def load(entry: EntryPoint, what: str, check: Callable[[Any], str | None]) -> Any:
    """The object behind an entry point. Raises as `find`."""
    where = f"{what} {entry.name!r} of {owner(entry)} ({entry.value})"
    try:
        found = entry.load()
    except Exception as error:  # foreign code may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise BadInput(f"{where} cannot be imported: {reason}; repair or uninstall {owner(entry)}") from error
    if (lack := check(found)) is not None:
        raise BadInput(f"{where}: {lack}")
    if found.name != entry.name:
        raise BadInput(f"{where}: calls itself {found.name!r}; its entry point must have the same name")
    return found
