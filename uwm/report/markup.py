"""HTML and SVG elements in which everything is escaped: names of sets, concepts and tensors are other people's."""

from __future__ import annotations

import unicodedata
from typing import Any

from markupsafe import Markup, escape

from ..escaping import clean

VOID = {"br", "img", "meta"}


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """One element.

    Args:
        name: The element.
        children: Markup as it is, anything else escaped; None is left out.
        attributes: ``class_`` for ``class``, ``stroke_width`` for ``stroke-width``; numbers are rounded to 2 digits,
            None is left out.
    """
    given = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _plain(value))
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Markup("<{}{}/>").format(Markup(name), given)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), given, join(children))


def join(parts: Any) -> Markup:
    """Pieces one after the other; None is left out."""
    return Markup("").join(escape(_plain(part)) for part in parts if part is not None)


def _plain(value: Any) -> Any:
    if isinstance(value, Markup):
        return value
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
