"""Elements of SVG, as trees of the standard library: text and attributes of others cannot become markup.

Charts are drawn by our own code, since a page of theirs must have equal bytes for equal figures, load nothing, follow
the reader's light or dark colours, and be made where matplotlib is not installed.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Any
from xml.etree.ElementTree import Element

from ..escaping import clean

Child = Any  # an element, text, a number, None, or several of them


def tag(name: str, /, *children: Child, **attributes: Any) -> Element:
    """One element.

    Args:
        name: The element.
        children: Text first, then elements; None is left out, and lists are flattened.
        attributes: ``class_`` for ``class``, ``stroke_width`` for ``stroke-width``; numbers are rounded to 2 digits,
            None is left out.
    """
    given = {key.rstrip("_").replace("_", "-"): _text(value) for key, value in attributes.items() if value is not None}
    made = Element(name, given)
    for child in _flat(children):
        if isinstance(child, Element):
            made.append(child)
        else:
            assert not len(made), "text comes before elements"
            made.text = (made.text or "") + _text(child)
    return made


def _flat(children: Iterable[Child]) -> Iterable[Child]:
    for child in children:
        if isinstance(child, str | Element) or not isinstance(child, Iterable):
            yield from () if child is None else (child,)
        else:
            yield from _flat(child)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{round(value, 2) + 0.0:.2f}".rstrip("0").rstrip(".")  # + 0.0: no minus zero
    return clean(str(value))


def width_of(text: str, size: float) -> float:
    """Roughly how wide text is, in the unit of `size`; wide (East Asian) characters count twice."""
    return sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.56 for c in text) * size


def fit(text: str, width: float, size: float) -> str:
    """Text cut, with an ellipsis, so that it fits a width."""
    text = clean(text)
    if width_of(text, size) <= width:
        return text
    while text and width_of(text + "…", size) > width:
        text = text[:-1]
    return text + "…"
