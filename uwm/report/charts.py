"""Charts as inline SVG: pure functions from numbers to elements, 360 wide so that a phone shows them at full size.

Series differ by shape as well as by colour; colours are classes (``s0`` …, ``safe``, ``unsafe``) that page.css fills in
for light and dark. Every chart has a title and a description, and the page a table with the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

from ..weights import MATRICES, WeightId, block_count
from .svg import Child, fit, tag

WIDTH = 360
TEXT = 12  # px
EDGE = 12  # room on the right for half of the last tick's label
FORMS = 4  # of shapes; colours are as many
Interval = Sequence[float]  # mean, low, high
Position = tuple[float, float]  # px


@dataclass(frozen=True)
class Row:
    """One line of a chart: series -> (mean, low, high), or a heading over the lines that follow, without values."""

    label: str
    values: Mapping[str, Interval] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Scale:
    """A horizontal axis.

    Attributes:
        low, high: What its ends stand for.
        ticks: Where it is labelled.
        unit: Its name, with the unit.
        factor: What values are multiplied with in labels, 100 for percent.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    unit: str
    factor: float = 100

    @classmethod
    def around(cls, values: Sequence[float], unit: str, factor: float = 100) -> Scale:
        """Round ticks that cover the values and zero."""
        low, high = min(0.0, *values), max(0.0, *values)
        high = high if high > low else 1 / factor
        step = _step(high - low)
        ticks = tuple(step * n for n in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1))
        return cls(ticks[0], ticks[-1], ticks, unit, factor)

    @classmethod
    def over(cls, low: float, high: float) -> Scale:
        """Round ticks from below `low` to above `high`, without those that are far below; labels are the values."""
        whole = cls.around([low, max(high, low + 0.1)], "", factor=1)
        step = whole.ticks[1] - whole.ticks[0]
        ticks = tuple(tick for tick in whole.ticks if tick > low - step)
        return cls(ticks[0], ticks[-1], ticks, "", factor=1)

    def __call__(self, value: float, left: float, right: float) -> float:
        """Where a value lies between two ends, in px."""
        return left + (value - self.low) / (self.high - self.low) * (right - left)


PERCENT = Scale(0, 1, (0, 0.25, 0.5, 0.75, 1), "percent")


def _step(span: float) -> float:
    """A round distance of ticks, for at most seven of them."""
    power = 10 ** math.floor(math.log10(span / 4))
    return next(power * m for m in (1, 2, 2.5, 5, 10) if span / (power * m) <= 6)


def chart(title: str, description: str, height: float, *body: Child, width: float = WIDTH) -> Element:
    """An SVG with its accessible name and description."""
    return tag(
        "svg", tag("title", title), tag("desc", description), *body,
        xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width:g} {height:g}", role="img", width=width, height=height,
    )  # fmt: skip


def words(x: float, y: float, content: object, class_: str | None = None, anchor: str | None = None) -> Element:
    return tag("text", content, x=x, y=y, class_=class_, text_anchor=anchor)


def _line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Element:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def mark(series: int, x: float = 7, y: float = 7) -> Element:
    """The sign of a series: hollow circle, full circle, diamond, square."""
    style = f"mark s{series % 4}"
    if series % 4 < 2:
        return tag("circle", cx=x, cy=y, r=3.5, class_=style)
    if series % 4 == 2:
        return tag("path", d=f"M{x:.2f} {y - 4.5:.2f}l4.5 4.5l-4.5 4.5l-4.5 -4.5z", class_=style)
    return tag("rect", x=x - 3.5, y=y - 3.5, width=7, height=7, class_=style)


def shape(form: int, place: Position, size: float, style: str, name: str | None = None) -> Element:
    """A circle, a square, a diamond or a triangle."""
    (x, y), title = place, tag("title", name) if name else None
    if form % FORMS == 0:
        return tag("circle", title, cx=x, cy=y, r=size, class_=style)
    if form % FORMS == 1:
        return tag("rect", title, x=x - size, y=y - size, width=2 * size, height=2 * size, class_=style)
    wide = 1.3 * size
    steps = f"l{wide:.2f} {wide:.2f} -{wide:.2f} {wide:.2f} -{wide:.2f} -{wide:.2f}z"
    if form % FORMS == 3:
        steps = f"l{wide:.2f} {2 * wide:.2f} -{2 * wide:.2f} 0z"
    return tag("path", title, d=f"M{x:.2f} {y - wide:.2f}{steps}", class_=style)


def star(x: float, y: float, name: str | None = None) -> Element:
    """The unedited model."""
    steps = "l1.65 4.2 4.5 .3 -3.5 2.9 1.15 4.4 -3.8 -2.4 -3.8 2.4 1.15 -4.4 -3.5 -2.9 4.5 -.3z"
    return tag("path", tag("title", name) if name else None, d=f"M{x:.2f} {y - 7:.2f}{steps}", class_="star")


def patch_of(series: int) -> Element:
    """A piece of a series' bar."""
    return tag("rect", x=1, y=2, width=12, height=10, class_=f"bar s{series % 4}")


def line_of(style: str) -> Element:
    """A piece of a histogram's line."""
    return tag("path", d="M0 12V3h7v5h7v4", class_=f"outline {style}")


def swatch(sign: Element) -> Element:
    """A sign in a line of text, for legends."""
    return tag("svg", sign, viewBox="0 0 14 14", width=14, height=14, class_="swatch", aria_hidden="true")


def _axis(scale: Scale, left: float, right: float, top: float, bottom: float) -> list[Child]:
    """Grid lines, labels and the name of the axis; 34 px below `bottom`."""
    parts = []
    for tick in scale.ticks:
        x = scale(tick, left, right)
        parts.append(_line(x, top, x, bottom, "zero" if tick == 0 else "grid"))
        parts.append(words(x, bottom + 15, f"{scale.factor * tick + 0.0:.6g}".replace("-", "−"), "tick", "middle"))
    return [*parts, words((left + right) / 2, bottom + 31, scale.unit, "tick", "middle")]


def dots(title: str, description: str, rows: Sequence[Row], series: Sequence[str], scale: Scale) -> Element:
    """Dot and whisker: a line of the chart for every row, in it a mark with its interval for every series.

    Args:
        title, description: For those who do not see it.
        rows: Values as `scale` has them.
        series: Names, in the order of their signs.
        scale: The axis.
    """
    left, right, top = 138, WIDTH - EDGE, 6
    lanes = [(number, name) for number, name in enumerate(series) if any(name in row.values for row in rows)]
    step = 10 * len(lanes) + 6
    y, body = float(top), list[Child]()
    for row in rows:
        if not row.values:
            body.append(words(0, y + 15, fit(row.label, WIDTH, TEXT), "head"))
            y += 24
            continue
        body.append(_line(0, y, WIDTH, y, "rule"))
        body.append(words(0, y + step / 2 + 4, fit(row.label, left - 14, TEXT)))
        for lane, (number, name) in enumerate(lanes):
            if name in row.values:
                body.append(_whisker(number, row.values[name], y + 8 + 10 * lane, scale, left, right))
        y += step
    return chart(title, description, y + 38, _axis(scale, left, right, top, y), *body)


def _whisker(series: int, interval: Interval, y: float, scale: Scale, left: float, right: float) -> list[Child]:
    mean, low, high = (scale(value, left, right) for value in interval)
    return [_line(low, y, high, y, f"whisker s{series % 4}"), mark(series, mean, y)]


def bars(title: str, description: str, rows: Sequence[Row], series: Sequence[str], scale: Scale) -> Element:
    """Bars from zero, under each row's name, which may be long; a whisker where low and high are not the mean.

    Arguments as `dots`.
    """
    left, right, y, body = 6, WIDTH - EDGE - 36, 0.0, list[Child]()
    for row in rows:
        body.append(words(0, y + 14, fit(row.label, WIDTH - 70 if row.note else WIDTH - 4, TEXT)))
        if row.note:
            body.append(words(WIDTH, y + 14, row.note, "tick", "end"))
        y += 20
        for number, name in enumerate(series):
            if name in row.values:
                body.append(_bar(number, row.values[name], y, scale, left, right))
            y += 13
        y += 9
    return chart(title, description, y + 38, _axis(scale, left, right, 18, y), *body)


def _bar(series: int, interval: Interval, y: float, scale: Scale, left: float, right: float) -> list[Child]:
    mean, low, high = (scale(value, left, right) for value in interval)
    parts = [tag("rect", x=left, y=y, width=max(mean - left, 0.5), height=10, class_=f"bar s{series % 4}")]
    if high > low:
        parts += [_line(low, y + 5, high, y + 5, "whisker edge"), _line(low, y + 2, low, y + 8, "whisker edge")]
        parts += [_line(high, y + 2, high, y + 8, "whisker edge")]
    parts.append(words(max(high, mean) + 5, y + 9, f"{scale.factor * interval[0]:.1f}", "tick"))
    return parts


def heat_map(title: str, description: str, shares: Mapping[str, float], top: float) -> Element:
    """Blocks from left to right, slots from top to bottom; the fuller a cell, the larger the share of it.

    Args:
        title, description: For those who do not see it.
        shares: Weight of one tower -> share of its entries, a fraction.
        top: The share of the fullest cell, the same for every tower that is compared.
    """
    weights = {WeightId.parse(name): share for name, share in shares.items()}
    slots = sorted({w.slot for w in weights}, key=MATRICES.index)
    blocks = range(max(block_count(weights, w.tower) for w in weights))
    left, height = 62, 30
    size = min(48.0, (WIDTH - left - 2) / len(blocks))
    body: list[Child] = [words(0, height * n + 20, slot) for n, slot in enumerate(slots)]
    for weight, share in weights.items():
        x, y = left + size * (weight.block or 0), float(height * slots.index(weight.slot))
        body.append(_cell(x, y, size, height, f"{weight}: {100 * share:.2f} %", share, top))
    every = math.ceil(16 / size)
    bottom = height * len(slots)
    body += [words(left + size * (b + 0.5), bottom + 15, b, "tick", "middle") for b in blocks if b % every == 0]
    body += [words(left, bottom + 32, "block", "tick"), _shades(bottom + 22.0, top)]
    return chart(title, description, bottom + 38, *body)


def _shades(y: float, top: float) -> list[Child]:
    """The key of the heat map."""
    x = WIDTH - 150.0
    cells = [_shade(x + 16 * n, y, 14, 12, n / 4) for n in range(5)]
    return [words(x - 6, y + 10, "0 %", "tick", "end"), *cells, words(x + 86, y + 10, f"{100 * top:.2f} %", "tick")]


def _shade(x: float, y: float, width: float, height: float, share: float, framed: bool = True) -> list[Child]:
    """A box, the fuller the larger the share (0 to 1)."""
    opacity = 0.06 + 0.44 * share  # over 0.5 the numbers lose their contrast
    box = {"x": x, "y": y, "width": width, "height": height}
    frame = tag("rect", **box, class_="frame") if framed else None
    return [frame, tag("rect", **box, class_="heat", fill_opacity=f"{opacity:.3f}")]


def _cell(x: float, y: float, size: float, height: float, name: str, share: float, top: float) -> Element:
    inner = size - 2 if size > 12 else size
    parts: list[Child] = [_shade(x, y + 1, inner, height - 2, share / top if top else 0, framed=size > 12)]
    if size >= 34:
        parts.append(words(x + inner / 2, y + height / 2 + 4, f"{100 * share:.2f}", "small", "middle"))
    return tag("g", tag("title", name), *parts)


def curves(title: str, description: str, values: Sequence[float], marked: int) -> Element:
    """One value an epoch as a line, with a mark on one of the epochs, counted from 1."""
    low, high = min(values), max(values)
    room = (high - low or abs(high) or 1.0) / 20
    left, right, top, bottom = 62.0, float(WIDTH - EDGE), 8.0, 150.0
    every = max(1, math.ceil(len(values) / 8))
    epochs = Scale(1, max(len(values), 2), tuple(range(1, len(values) + 1, every)), "epoch", factor=1)
    points = [
        (epochs(number, left, right), bottom - (value - low + room) / (high - low + 2 * room) * (bottom - top))
        for number, value in enumerate(values, 1)
    ]
    path = "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points)
    ends = ((high, min(y for _, y in points)), (low, max(y for _, y in points)))
    body: list[Child] = [words(left - 8, y + 4, f"{value:.4g}", "tick", "end") for value, y in ends]
    body += [_axis(epochs, left, right, top, bottom), tag("path", d=path, class_="curve")]
    return chart(title, description, bottom + 38, *body, mark(1, *points[marked - 1]))


def histograms(
    title: str,
    description: str,
    panels: Sequence[tuple[str, Mapping[str, Sequence[int]]]],
    extent: tuple[int, int, int],
) -> Element:
    """Panels side by side, each with the outlines of a few histograms of 100 equal bins from −1 to 1.

    Args:
        title, description: The title is drawn too.
        panels: (Name, {class of the line: counts [100]}).
        extent: First bin, end of the last one, and highest count, the same for all that is compared.
    """
    first, last, peak = extent
    low, high = first / 50 - 1, last / 50 - 1
    step = _step(1.5 * (high - low))
    ticks = tuple(step * n for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1))
    scale = Scale(low, high, ticks, "cosine", factor=1)
    size = (WIDTH - 34 - 16 * len(panels)) / len(panels)
    body: list[Child] = [words(0, 14, title, "head")]
    body += [words(26, 47, peak, "tick", "end"), words(26, 130, 0, "tick", "end")]
    for number, (name, lines) in enumerate(panels):
        left = 32 + (size + 16) * number
        body += [words(left, 34, fit(name, size, TEXT)), _axis(scale, left, left + size, 42, 130)]
        body += [_outline(counts[first:last], peak, left, size, 130, style) for style, counts in lines.items()]
    body.append(tag("text", "pairs", class_="tick", text_anchor="middle", transform="translate(22 88) rotate(-90)"))
    return chart(title, description, 168, *body)


def _outline(counts: Sequence[int], peak: int, left: float, size: float, bottom: float, style: str) -> Element:
    """A histogram as one step line, filled."""
    step = size / len(counts)
    path = f"M{left:.2f} {bottom:.2f}"
    path += "".join(f"V{bottom - 84 * count / peak:.2f}h{step:.2f}" for count in counts)
    return tag("path", d=f"{path}V{bottom:.2f}", class_=f"outline {style}")
