"""The front as a plot: the objective against the loss of knowledge, all trials faint, the points as a line."""

from __future__ import annotations

from typing import Any

from ..escaping import clean
from ..report.plotting import COLOURS, GREYS, MARKERS, check_plotting, empty_figure, show_grid, written
from . import axes
from .front import CHECKED, Front
from .table import UNEDITED

HEIGHT = 4.2  # inches
ROOM = 0.06  # beside the outermost points, as a share of the axis
NAME_ROOM = 0.2  # on the left of the knee, for its name
COLUMNS = 4  # of the legend


def draw(front: Front) -> dict[str, bytes]:
    """The plot as ``svg`` and ``png``; equal fronts give equal bytes. Raises BadInput without matplotlib.

    Faint dots are trials, by method; the dark line joins the points of the front as cross-validation sees them, open
    markers are the same points on held-out pairs, and a black star is the unedited model.
    """
    check_plotting()
    with empty_figure(HEIGHT) as figure:
        panel = figure.subplots()
        show_grid(panel)
        panel.set_xscale("asinh", linear_width=axes.STRETCH)
        colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(axes.methods_of(front))}
        for name, colour in colours.items():
            _trials(panel, front, name, colour)
        _points(panel, front, colours)
        for place, name in enumerate(front["baseline"]["held_out"]):
            _held_out(panel, front, name, MARKERS[1 + place % (len(MARKERS) - 1)])
        for loss, objective in axes.unedited(front):
            panel.plot(loss, objective, "*", color="#000000", markersize=11, linestyle="none", label=UNEDITED, zorder=6)
        _frame(panel, front)
        _name_knee(panel, front)
        handles, labels = panel.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=COLUMNS, frameon=False)
        return written(figure)


def _trials(panel: Any, front: Front, name: str, colour: str) -> None:
    """All trials of a method; the sign in the legend is not faint."""
    trials = [trial for trial in front["tried"] if trial["method"] == name]
    x, y = [trial["loss"] for trial in trials], [trial["objective"] for trial in trials]
    panel.plot(x, y, ".", color=colour, alpha=0.3, markersize=4.5, markeredgewidth=0, zorder=2)
    panel.plot([], [], ".", color=colour, markersize=6, label=clean(name))


def _points(panel: Any, front: Front, colours: dict[str, str]) -> None:
    """The front as cross-validation sees it."""
    places = axes.of_points(front)
    panel.plot(*zip(*places, strict=True), color=GREYS[0], linewidth=1, zorder=3, label=f"the front, {CHECKED}")
    for point, (loss, objective) in zip(front["points"], places, strict=True):
        panel.plot(loss, objective, "o", color=colours[point["method"]], markersize=4.5,
                   markeredgecolor="#000000", markeredgewidth=0.6, zorder=4)  # fmt: skip


def _held_out(panel: Any, front: Front, name: str, marker: str) -> None:
    places = [place for place in axes.held_out(front, name) if place]
    x, y = [loss for loss, _ in places], [objective for _, objective in places]
    panel.plot(x, y, marker, markerfacecolor="none", markeredgecolor="#000000", markersize=4.5, markeredgewidth=0.7,
               linestyle="none", label=f"the same points, {clean(name)}", zorder=5)  # fmt: skip


def _frame(panel: Any, front: Front) -> None:
    """The budgets, ticks and names of the axes; what lies outside is counted."""
    (least, most), (low, high) = axes.window(front)
    left, right = axes.stretched(least), axes.stretched(most)
    width, height = right - left, high - low
    knee = axes.stretched(front["points"][front["knee"] - 1]["loss"])
    left, right = min(left - ROOM * width, knee - NAME_ROOM * width), right + ROOM * width
    panel.set_xlim(axes.unstretched(left), axes.unstretched(right))
    panel.set_ylim(low - 1.5 * ROOM * height, high + 1.5 * ROOM * height)
    panel.set_xticks(axes.loss_ticks(*panel.get_xlim()))
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
    panel.minorticks_off()
    panel.set_xlabel(f"loss of knowledge ({front['loss']['unit']}{axes.beyond(front, most)})")
    panel.set_ylabel(f"{front['objective']['label']} (%)")


def _name_knee(panel: Any, front: Front) -> None:
    """A ring around the knee, and its name where a front leaves room: on the side that no trial reaches."""
    point = front["points"][front["knee"] - 1]
    up = -1 if front["objective"]["lower_is_better"] else 1
    panel.plot(point["loss"], point["objective"], "o", markerfacecolor="none", markeredgecolor="#000000",
               markersize=9, markeredgewidth=0.9, zorder=4)  # fmt: skip
    panel.annotate(
        f"knee (point {point['number']})", (point["loss"], point["objective"]), (-14, 14 * up),
        textcoords="offset points", ha="right", va="center",
        arrowprops={"arrowstyle": "-", "linewidth": 0.6, "shrinkA": 1, "shrinkB": 5},
    )  # fmt: skip
