"""report.html of a search: the front, its points, and how to apply one, in one file without script."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from ..report.pages import Cell, Drawing, Part, Table, whole_page
from ..report.parts import provenance
from . import axes
from .chart import keys, scatter
from .front import CHECKED, Front
from .table import READING, cells, classes_words, summary, titled

TEMPLATE = "tuning/page.html"
DOTS = "Rest the pointer on a dot to see its method, settings and figures; the tables have them too."
NAMES = 3  # columns of a table before its figures


def front_page(front: Front) -> str:
    """The page; a pure function of tune.json's content, with nothing loaded and no script."""
    label = front["objective"]["label"].capitalize()
    title = f"{label} against loss of knowledge: {front['model']['name']}, searched by uwm"
    parts = [_front(front), _applying(front), _points(front), _trials(front), provenance(front)]
    return whole_page(title, TEMPLATE, parts, front)


def _front(front: Front) -> Part:
    (_, most), _ = axes.window(front)
    hidden = axes.beyond(front, most).removeprefix("; ")
    about = f"{DOTS} {hidden[:1].upper()}{hidden[1:]}{'.' if hidden else ''}".strip()
    values = {
        "lines": [*summary(front), *front["notes"]],
        "legend": keys(front),
        "drawing": Drawing(scatter(front), about),
    }
    return Part("front", "The front", values, top=True)


def _applying(front: Front) -> Part:
    knee, model = front["knee"], front["model"]["name"]
    forms = [
        (f"--point {knee}", "a point by its number"),
        ("--point knee", f"point {knee}"),
        ("--point max-loss=2%", "the best point that loses at most 2 % of any figure of knowledge"),
    ]
    body = [(Cell(f"uwm apply {model} FOLDER {form} -o OUT", "code"), meaning) for form, meaning in forms]
    return Part("apply", "How to apply a point", Table("How to apply a point", ("", ""), body, "commands"))


def _points(front: Front) -> Part:
    values = {
        "about": f"{READING}{classes_words(front)}",
        "sets": [(title, _figures(front, name)) for name, title in titled(front)],
        "checked": _figures(front, CHECKED) if front["baseline"]["held_out"] else None,
        "settings": _settings(front),
    }
    return Part("points", "The points", values)


def _figures(front: Front, name: str) -> Table:
    """A set's table; the knee stands out, and intervals are in their own style."""
    head, *rows = cells(front, name)
    return Table(f"The points on {name}", head, [[*_row(row)] for row in rows], "points")


def _row(row: Sequence[str]) -> Iterator[Any]:
    knee = row[0].endswith(")")
    for column, text in enumerate(row):
        yield Cell(text, "strong") if knee else Cell(text, "interval") if column >= NAMES else text


def _settings(front: Front) -> Table:
    head = ("point", "trial", "method", "patch", "settings")
    body = [
        (p["number"], p["trial"], p["method"], p["patch"], Cell(json.dumps(p["settings"], ensure_ascii=False), "code"))
        for p in front["points"]
    ]
    return Table("All settings", head, body)


def _trials(front: Front) -> Part:
    trials, methods = front["trials"], front["trials"]["by_method"]
    head = ("method", "trials", "seconds", "a minute", "points of the front")
    body = [
        (name, f"{found['trials']:.0f}", f"{found['seconds']:.1f}",
         f"{60 * found['trials'] / found['seconds']:.0f}" if found["seconds"] else "–",
         sum(point["method"] == name for point in front["points"]))
        for name, found in methods.items()
    ]  # fmt: skip
    about = (
        f"{trials['asked']} trials were asked for, {trials['done']} were measured, {trials['stopped']} left after a "
        f"part that was clearly worse than another one, and {trials['invalid']} could not be measured."
    )
    return Part("trials", "Trials", {"about": about, "table": Table("Trials by method", head, body, "numbers")})
