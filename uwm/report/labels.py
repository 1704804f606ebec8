"""Labels beside the points of a chart, none over another one or over a point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .svg import width_of

ROOM = 1.25  # of the estimated width of a text: fonts differ, and some labels are bold
NEAR = 8.0  # px from a point to its label
MARK = 5.0  # px that a point takes on each side
FARTHER = ((0, -1.6), (0, 1.6), (1, -1.6), (-1, -1.6), (1, 1.6), (-1, 1.6))  # in steps to the side, and down


class Box(NamedTuple):
    """A rectangle, in px."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Whether the two overlap."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom

    def holds(self, other: Box) -> bool:
        """Whether the other one lies in it."""
        return self.left <= other.left and other.right <= self.right and self.top <= other.top <= other.bottom <= self.bottom  # noqa: E501  # fmt: skip


class Label(NamedTuple):
    """A text, where its baseline begins, and its box."""

    text: str
    x: float
    y: float
    box: Box


def placed(
    places: Sequence[tuple[float, float]], texts: Sequence[Sequence[str]], within: Box, size: float
) -> list[Label | None]:
    """A label for each point that has room for one; what comes first chooses first.

    Args:
        places: Where the points are, px.
        texts: What each may be labelled with, the best first; none for a point without a label.
        within: Where labels may be.
        size: Of the font, px.
    """
    taken = [Box(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in places]
    found: list[Label | None] = []
    for place, wanted in zip(places, texts, strict=True):
        tried = (label for text in wanted for label in _around(place, text, size))
        free = (one for one in tried if within.holds(one.box) and not any(map(one.box.meets, taken)))
        label = next(free, None)
        found.append(label)
        taken += [label.box] if label else []
    return found


def _around(place: tuple[float, float], text: str, size: float) -> Iterator[Label]:
    """The places that a label may have, the best first: right, left, above, below, the corners, and farther off."""
    (x, y), width = place, ROOM * width_of(text, size)
    for across, down in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1), *FARTHER):
        near = NEAR if down == 0 else 0.5 * NEAR
        left = x - width / 2 if across == 0 else x + near if across > 0 else x - near - width
        middle = y + down * (NEAR + 0.5 * size)
        box = Box(left, middle - 0.6 * size, left + width, middle + 0.6 * size)
        yield Label(text, left, middle + 0.35 * size, box)
