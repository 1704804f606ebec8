"""The trade-off as a plot: safety against accuracy, one colour and marker a method, curves over τ or epochs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from typing import Any

from ..escaping import clean
from ..figures import ZERO_SHOT, label
from ..report.plotting import COLOURS, GREYS, MARKERS, empty_figure, show_grid, written
from .figures import CHANCE, Row
from .front import CONTROLS, short_names
from .methods import CONTROL, NONE

SAFETY = ("GS", "PU", "R1_unsafe")
ACCURACY = (ZERO_SHOT, "R1_safe")
READING = "markers grow along a curve; dark edge: the best epoch, or a method of one point; whiskers: 95 %"
IGNORANT = "reached by chance"


def draw(rows: Sequence[Row], title: str) -> dict[str, bytes]:
    """One evaluation set's trade-off as ``svg`` and ``png``; equal rows give equal bytes.

    A panel for each of GS, PU and unsafe R@1, a row of panels for each of zero-shot accuracy (where it was measured)
    and safe R@1. Whiskers are 95 % intervals. The grey band is what embeddings without any knowledge reach, see
    `uwm.comparison.figures.CHANCE`.
    """
    accuracy = [name for name in ACCURACY if name in rows[0].figures]
    names = short_names([*dict.fromkeys(row.method for row in rows)])
    lines = -(-(len(names) + 1) // _columns(names.values()))
    with empty_figure(0.4 + 2.2 * len(accuracy) + 0.17 * lines) as figure:
        panels = figure.subplots(len(accuracy), len(SAFETY), squeeze=False, sharex="row", sharey="col")
        for line, across in enumerate(accuracy):
            for column, up in enumerate(SAFETY):
                _panel(panels[line][column], rows, names, (across, up))
                _name_axes(panels[line][column], across, up)
        figure.suptitle(f"{clean(title)}\n{READING}", fontsize=8)
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=_columns(names.values()), frameon=False)
        return written(figure)


def _columns(labels: Collection[str]) -> int:
    """How many columns of a legend fit below the panels."""
    return max(1, min(len(labels), int(105 / (max(map(len, (*labels, IGNORANT))) + 7))))


def _panel(panel: Any, rows: Sequence[Row], names: Mapping[str, str], axes: tuple[str, str]) -> None:
    """All methods, by one figure of accuracy and one of safety."""
    up = axes[1]
    show_grid(panel)
    if up in CHANCE:
        low, high = CHANCE[up]
        panel.axhspan(100 * low, 100 * high, color="#eceef1", linewidth=0, zorder=0, label=IGNORANT)
    methods = [(name, list(points)) for name, points in groupby(rows, lambda row: row.method)]
    plain = iter(range(len(methods)))
    for name, points in methods:
        colour, marker = _look(name, plain)
        _curve(panel, names[name], points, axes, colour, marker)
    highest = max(100 * row.figures[up].value[2] for row in rows)
    panel.set_ylim(-0.04 * max(highest, 1), max(highest * 1.06, 1))


def _look(name: str, plain: Any) -> tuple[str, str]:
    """Colour and marker of a method: the unedited model is a black star, controls are grey."""
    if name == NONE:
        return "#000000", "*"
    if (control := name.partition(":")[0]) in CONTROLS or CONTROL in name.split(":"):
        number = CONTROLS.index(control) if control in CONTROLS else 0
        return GREYS[number], "x+"[number]
    number = next(plain)
    return COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]


def _curve(panel: Any, name: str, points: list[Row], axes: tuple[str, str], colour: str, marker: str) -> None:
    """Points in their order, joined; markers grow along the curve, and a point off the curve has a dark edge."""
    joined = [row for row in points if row.at is not None]
    control, star = name.partition(":")[0] in CONTROLS, name == NONE
    label: str | None = name
    for rows, edge in ((joined, colour), ([row for row in points if row.at is None], "#000000")):
        if not rows:
            continue
        x, y = ([100 * row.figures[axis].value[0] for row in rows] for axis in axes)
        whiskers = [_whiskers(rows, axis) for axis in axes]
        panel.errorbar(x, y, whiskers[1], whiskers[0], fmt="none", ecolor=colour, elinewidth=0.6, alpha=0.45)
        panel.plot(x, y, color=colour, linewidth=1, linestyle="--" if control else "-")
        largest = 11 if star else 6.5
        for number, (a, b) in enumerate(zip(x, y, strict=True)):
            size = largest if len(x) == 1 else 3.5 + 3 * number / (len(x) - 1)
            last = number == len(x) - 1
            panel.plot(a, b, marker, color=colour, markersize=size, markeredgecolor=edge, markeredgewidth=0.7,
                       linestyle="none", label=label if last else None, zorder=4 if star else 3)  # fmt: skip
        label = None


def _whiskers(rows: Sequence[Row], axis: str) -> list[list[float]]:
    """Below and above the mean, in percent; never negative, which rounding could make them."""
    values = [row.figures[axis].value for row in rows]
    return [[max(0.0, 100 * (m - low)) for m, low, _ in values], [max(0.0, 100 * (high - m)) for m, _, high in values]]


def _name_axes(panel: Any, across: str, up: str) -> None:
    panel.set_xlabel(f"{label(across)} (%)")
    panel.set_ylabel(f"{label(up)} (%)")
