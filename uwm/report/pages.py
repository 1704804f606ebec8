"""The frame of every page: sections of plain values, rendered by the templates that lie beside the code.

Templates escape all that is printed, and refuse names that were not given. A page needs nothing beside it: inline CSS,
no script, nothing loaded.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree.ElementTree import Element, tostring

from markupsafe import Markup

from ..escaping import clean

if TYPE_CHECKING:
    from jinja2 import Environment

PACKAGE = Path(__file__).parents[1]
FRAME = "report/frame.html"
MARK = b'<meta name="generator" content="uwm"/>'  # by it a page is known as ours, which may be replaced
HEAD = 4096  # bytes in which it stands


class Part(NamedTuple):
    """A section: its id, which names its macro too, its heading, and what the macro is given.

    Those with `top` stand above the table of contents.
    """

    anchor: str
    title: str
    values: Any
    top: bool = False


class Cell(NamedTuple):
    """A cell of a table that does not look like the others.

    `look`: ``interval``, ``strong``, ``gain`` or ``loss``, all with what is in brackets faint; ``code``, ``name`` (of
    other people).
    """

    text: str
    look: str


class Table(NamedTuple):
    """A table that scrolls sideways by itself; a row of one cell is a heading. `look`: a class of page.css."""

    name: str  # for those who do not see it
    head: Sequence[Any]  # all empty for a table without a heading
    body: Sequence[Sequence[Any]]  # text, numbers and `Cell`
    look: str = ""


class Drawing(NamedTuple):
    """A chart with its caption, which may be empty."""

    chart: Element
    caption: str = ""


def whole_page(title: str, template: str, parts: Iterable[Part | None], document: Mapping[str, Any]) -> str:
    """A page of the sections that have content.

    Args:
        title: Of the page.
        template: The file with a macro for each section, such as ``report/page.html``.
        parts: Sections in their order; None is left out.
        document: Whose ``versions`` and ``run`` say what made the page, and when.
    """
    shown = [part for part in parts if part is not None]
    about = {"date": document.get("run", {}).get("date"), "versions": document.get("versions", {})}
    return _environment().get_template(FRAME).render(title=title, template=template, parts=shown, **about)


def is_page(path: Path) -> bool:
    """Whether a file is a page that uwm wrote."""
    with path.open("rb") as file:
        start = file.read(HEAD)
    return start.startswith(b"<!doctype html>") and MARK in start


@functools.cache
def _environment() -> Environment:
    """Imported on the first page: no command waits for it that writes none."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(PACKAGE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printed,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _printed(value: Any) -> Any:
    """What a template prints: charts as markup, all else as one line that can be shown, which is escaped then.

    This is the only place where anything but a template's own text counts as markup.
    """
    if isinstance(value, Element):
        return Markup(tostring(value, "unicode"))
    return value if isinstance(value, Markup) else clean(str(value))
