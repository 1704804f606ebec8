"""report.html of a search: the front, its points, and how to apply one, in one file without script."""

from __future__ import annotations

import json
from collections.abc import Sequence

from markupsafe import Markup

from ..report.markup import join, tag
from ..report.parts import folded, provenance, section, table, whole_page
from . import axes
from .chart import keys, scatter
from .front import CHECKED, Front
from .table import READING, cells, classes_words, summary, titled

DOTS = "Rest the pointer on a dot to see its method, settings and figures; the tables have them too."
NAMES = 3  # columns of a table before its figures


def front_page(front: Front) -> str:
    """The page; a pure function of tune.json's content, with nothing loaded and no script."""
    label = front["objective"]["label"].capitalize()
    title = f"{label} against loss of knowledge: {front['model']['name']}, searched by uwm"
    parts = [_front(front), _applying(front), _points(front), _trials(front), provenance(front)]
    return whole_page(title, *parts)


def _front(front: Front) -> Markup:
    (_, most), _ = axes.window(front)
    hidden = axes.beyond(front, most).removeprefix("; ")
    about = f"{DOTS} {hidden[:1].upper()}{hidden[1:]}{'.' if hidden else ''}".strip()
    lines = [tag("li", sentence) for sentence in summary(front)]
    notes = [tag("li", note) for note in front["notes"]]
    drawn = tag("figure", tag("figcaption", about), scatter(front), class_="large")
    return section("The front", "front", tag("ul", *lines, *notes), keys(front), drawn)


def _applying(front: Front) -> Markup:
    knee, model = front["knee"], front["model"]["name"]
    forms = [
        (f"--point {knee}", "a point by its number"),
        ("--point knee", f"point {knee}"),
        ("--point max-loss=2%", "the best point that loses at most 2 % of any figure of knowledge"),
    ]
    body = [(tag("code", f"uwm apply {model} FOLDER {form} -o OUT"), meaning) for form, meaning in forms]
    about = tag("p", "FOLDER is the folder of this page. No model library is needed.")
    return section("How to apply a point", "apply", about, table(("", ""), body, "How to apply a point", "commands"))


def _points(front: Front) -> Markup:
    shown = [join([tag("h3", tag("bdi", title)), _figures(front, name)]) for name, title in titled(front)]
    details = [folded("All figures in cross-validation", _figures(front, CHECKED))] if _held_out(front) else []
    settings = folded("All settings", _settings(front))
    about = tag("p", f"{READING}{classes_words(front)}")
    return section("The points", "points", about, *shown, *details, settings)


def _held_out(front: Front) -> bool:
    return bool(front["baseline"]["held_out"])


def _figures(front: Front, name: str) -> Markup:
    """A set's table; the knee stands out, and intervals are in their own style."""
    head, *rows = cells(front, name)
    body = [[*row[:NAMES], *map(_cell, row[NAMES:])] for row in rows]
    marked = [[tag("strong", cell) if row[0].endswith(")") else cell for cell in row] for row in body]
    return table(head, marked, f"The points on {name}", "points")


def _cell(text: str) -> Markup:
    mean, bracket, ends = text.partition(" [")
    return join([mean, tag("span", f"{bracket}{ends}", class_="interval") if ends else None])


def _settings(front: Front) -> Markup:
    head = ("point", "trial", "method", "patch", "settings")
    body: list[Sequence[object]] = [
        (p["number"], p["trial"], p["method"], p["patch"], tag("code", json.dumps(p["settings"], ensure_ascii=False)))
        for p in front["points"]
    ]
    return table(head, body, "All settings")


def _trials(front: Front) -> Markup:
    methods = front["trials"]["by_method"]
    head = ("method", "trials", "seconds", "a minute", "points of the front")
    body = [
        (name, f"{found['trials']:.0f}", f"{found['seconds']:.1f}",
         f"{60 * found['trials'] / found['seconds']:.0f}" if found["seconds"] else "–",
         sum(point["method"] == name for point in front["points"]))
        for name, found in methods.items()
    ]  # fmt: skip
    trials = front["trials"]
    about = (
        f"{trials['asked']} trials were asked for, {trials['done']} were measured, {trials['stopped']} left after a "
        f"part that was clearly worse than another one, and {trials['invalid']} could not be measured."
    )
    return section("Trials", "trials", tag("p", about), table(head, body, "Trials by method", "numbers"))
