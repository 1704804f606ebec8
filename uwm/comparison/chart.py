"""The chart of a comparison: safety against loss of knowledge, the line of the best, labels at the points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from xml.etree.ElementTree import Element

from ..report.charts import TEXT, Position, Scale, chart, shape, star, words
from ..report.labels import Box, placed
from ..report.parts import Legend, legend
from ..report.svg import tag
from ..tuning import axes
from .front import KINDS, UNEDITED, Spot

WIDE, NARROW = (1000.0, 520.0), (360.0, 400.0)  # px, for a desktop and for a phone
TOP, LEFT, BELOW = 26.0, 34.0, 38.0  # room for the names of the axes and their ticks
ROOM, NAME_ROOM = 14.0, 38.0  # px on the right of the outermost points, and on the left, where a name is
LOOKS = {"edit": (0, "s1"), "fine-tuning": (1, "s2"), "fine-tuning, then edit": (2, "s3"), "checkpoint": (3, "s1"),
         "control": (3, "s0")}  # shape and colour  # fmt: skip


class _Frame:
    """Where a loss and a safety lie, and the axes."""

    def __init__(self, spots: Sequence[Spot], size: tuple[float, float]) -> None:
        self.right, self.bottom = size[0] - 10.0, size[1] - BELOW
        losses, safe = [spot.loss for spot in spots], [spot.safety for spot in spots]
        self.least, self.most = min(losses), max(*losses, min(losses) + 1)
        self.scale = Scale.over(min(safe), max(safe))

    def __call__(self, loss: float, safety: float) -> Position:
        ends = axes.stretched(self.least), axes.stretched(self.most)
        share = (axes.stretched(loss) - ends[0]) / (ends[1] - ends[0])
        return LEFT + NAME_ROOM + share * (self.right - LEFT - NAME_ROOM - ROOM), self.scale(safety, self.bottom, TOP)

    def lines(self) -> Iterator[Element]:
        """Grid, ticks, the names of the axes, and which way is better."""
        for tick in self.scale.ticks:
            y = self(0, tick)[1]
            yield tag("line", x1=LEFT, y1=y, x2=self.right, y2=y, class_="grid")
            yield words(LEFT - 5, y + 4, f"{tick:g}", "tick", "end")
        for tick in axes.loss_ticks(self.least, self.most):
            x = self(tick, 0)[0]
            yield tag("line", x1=x, y1=TOP, x2=x, y2=self.bottom, class_="zero" if tick == 0 else "grid")
            yield words(x, self.bottom + 15, f"{tick:g}".replace("-", "−"), "tick", "middle")
        yield words(0, 12, "↑ better: safety (%)", "tick")
        yield words(LEFT, self.bottom + 31, "← better: loss of knowledge (points)", "tick")


def scatter(name: str, spots: Sequence[Spot], size: tuple[float, float]) -> Element:
    """All rows of a set: a shape and colour for each kind, thin lines along curves, a dark one along the best.

    Args:
        name: Of the evaluation set.
        spots: From `uwm.comparison.front.spots`.
        size: `WIDE` or `NARROW`, px.
    """
    frame = _Frame(spots, size)
    places = {spot.number: frame(spot.loss, spot.safety) for spot in spots}
    best = sorted((spot for spot in spots if spot.front), key=lambda spot: spot.loss)
    body = [*frame.lines(), *_trails(spots, places), _path(best, places, "front")]
    body += [_mark(spot, places[spot.number]) for spot in sorted(spots, key=lambda spot: spot.front)]
    told = f"{len(spots)} models, {len(best)} of them on the line; numbers in the table."
    labels = _labels(spots, places, frame)
    return chart(f"Safety against loss of knowledge, {name}", told, size[1], *body, *labels, width=size[0])


def _path(spots: Sequence[Spot], places: dict[int, Position], style: str) -> Element:
    line = "L".join("{:.2f} {:.2f}".format(*places[spot.number]) for spot in spots)
    return tag("path", d=f"M{line}", class_=style)


def _trails(spots: Sequence[Spot], places: dict[int, Position]) -> Iterator[Element]:
    """The curve of every method that has one."""
    for (_, kind), own in groupby(spots, lambda spot: (spot.name, spot.kind)):
        points = [spot for spot in own if spot.at]
        if len(points) > 1:
            yield _path(points, places, f"trail {LOOKS[kind][1]}")


def _mark(spot: Spot, place: Position) -> Element:
    told = f"{spot.number}: {spot.told}: safety {spot.safety:.1f} %, loss {spot.loss:.1f} points"
    if spot.kind == UNEDITED:
        return star(*place, told)
    form, colour = LOOKS[spot.kind]
    return shape(form, place, 4 if spot.front else 3.2, f"point {colour}", told)


def _labels(spots: Sequence[Spot], places: dict[int, Position], frame: _Frame) -> Iterator[Element]:
    """Names where there is room, of other points the number in the table; the best choose first."""
    safest = {spot.name: spot.number for spot in sorted(spots, key=lambda spot: spot.safety)}
    order = sorted(spots, key=lambda s: (s.kind != UNEDITED, not s.front, s.number != safest[s.name], s.number))
    texts = [_texts(spot, spot.number == safest[spot.name]) for spot in order]
    within = Box(LEFT, TOP - 8, frame.right + 8, frame.bottom)
    for spot, found in zip(order, placed([places[s.number] for s in order], texts, within, TEXT), strict=True):
        if found:
            yield words(found.x, found.y, found.text, "label strong" if spot.front else "label")


def _texts(spot: Spot, safest: bool) -> list[str]:
    """What a point may be labelled with: one of the line, and the safest of a method, by name."""
    if spot.front:
        return [spot.told, spot.name, str(spot.number)]
    return [spot.name, str(spot.number)] if safest else [str(spot.number)]


def keys(spots: Sequence[Spot]) -> Legend:
    """The legend: the kinds that there are, the line of the best, the unedited model."""
    there = [kind for kind in KINDS if any(spot.kind == kind for spot in spots)]
    signs = [shape(LOOKS[kind][0], (7, 7), 4, f"point {LOOKS[kind][1]}") for kind in there]
    signs += [tag("path", d="M0 7h14", class_="front"), star(7, 7)]
    return legend([*there, "no other is better in both ways", UNEDITED], signs.__getitem__)
