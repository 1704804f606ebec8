"""Whether a file lies in its folder, links followed: what others put there must not lead elsewhere."""

from __future__ import annotations

from pathlib import Path

from ..errors import Refused


def is_contained(path: Path, home: Path) -> bool:
    """Whether a file lies in a folder once links are followed.

    A snapshot in the Hub's cache has links to the blobs beside it, which count as its own, in its sub-folders too.
    """
    own, place = home.resolve(), path.resolve()
    blobs = (above.parents[1] / "blobs" for above in (own, *own.parents) if above.parent.name == "snapshots")
    return any(place.is_relative_to(allowed) for allowed in (own, *blobs))


def demand_contained(path: Path, home: Path) -> None:
    """Raise Refused for a link that leads out of a folder, naming it."""
    if not is_contained(path, home):
        raise Refused(f"{path}: is a link that leaves {home}; put the file itself there, or remove the link")
