"""The folder of a search: what is written from its result."""

from __future__ import annotations

from pathlib import Path

from ..outputs import put_file
from ..records import to_json
from .front import FILE, Front
from .page import front_page
from .plot import draw
from .table import csv_table, markdown

WRITTEN = (FILE, "tune.md", "tune.csv", "report.html", "front.svg", "front.png")


def write_front(folder: Path, front: Front) -> None:
    """Write tune.json, tune.md, tune.csv, report.html, front.svg and front.png; each appears whole or not at all.

    The patches in points/ and study.journal are left alone. The plots come last, so that the others are there without
    matplotlib.

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
