"""The folder of a search: what is written from its result."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ResourceFault
from ..outputs import put_file
from ..outputs.temporary import private_folder, remove_left, sync_folder, sync_tree, temporary_beside
from ..records import to_json
from .front import FILE, Front
from .page import front_page
from .plot import draw
from .table import csv_table, markdown

WRITTEN = (FILE, "tune.md", "tune.csv", "report.html", "front.svg", "front.png")
POINTS = "points"
NEW = "front"  # in the name of the temporary folder


@contextmanager
def new_front(output: Path) -> Iterator[Path]:
    """A folder to write a front into, which takes the place of the earlier front when the body succeeds.

    Args:
        output: The folder of the search, whose lock is held.

    Raises:
        ResourceFault: The disk failed; the earlier front is whole.
    """
    try:
        remove_left(output, NEW)
        place = temporary_beside(output / NEW)
        with private_folder(place):
            yield place
            sync_tree(place)
            _exchange(place, output)
    except OSError as error:
        raise ResourceFault(f"{output}: could not write: {error.strerror or error}") from error


def _exchange(new: Path, output: Path) -> None:
    """Move what was written into its place; tune.json, which speaks of all of it, goes first and comes last."""
    (output / FILE).unlink(missing_ok=True)
    if os.path.lexists(output / POINTS):
        (output / POINTS).rename(new / f"old-{POINTS}")
    (new / POINTS).rename(output / POINTS)
    for name in sorted(WRITTEN, key=lambda name: name == FILE):
        (new / name).replace(output / name)
    sync_folder(output)


def write_front(folder: Path, front: Front) -> None:
    """Write tune.json, tune.md, tune.csv, report.html, front.svg and front.png.

    Args:
        folder: Of `new_front`, or any other.
        front: What they tell; its patches are left alone.

    Raises:
        ResourceFault: The disk fails.
        BadInput: matplotlib is not installed; `uwm.report.plotting.check_plotting` tells before the search.
    """
    texts = {FILE: f"{to_json(front)}\n", "tune.md": markdown(front), "tune.csv": csv_table(front)}
    texts["report.html"] = front_page(front)
    for name, text in texts.items():
        put_file(folder / name, text.encode())
    for suffix, data in draw(front).items():
        put_file(folder / f"front.{suffix}", data)
