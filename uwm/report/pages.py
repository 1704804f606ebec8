"""The frame of every page: sections of plain values, rendered by the templates that lie beside the code.

Templates escape all that is printed, and refuse names that were not given. A page needs nothing beside it: inline CSS,
no script, nothing loaded.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element, tostring

from markupsafe import Markup

from ..escaping import clean

if TYPE_CHECKING:
    from jinja2 import Environment

PACKAGE = Path(__file__).parents[1]
FRAME = "report/frame.html"
MARK = b'<meta name="generator" content="uwm"/>'  # by it a page is known as ours, which may be replaced
HEAD = 4096  # bytes in which it stands
NAMES = {"uwm": "uwm", "python": "Python"}  # of versions, as the page spells them


@dataclass(frozen=True)
class Part:
    """A section of a page.

    Attributes:
        anchor: Its id, and the name of its macro in the page's template, ``-`` spelt ``_``.
        title: Its heading.
        values: What the macro is given: text, numbers, charts, and lists and tables of these.
        top: Whether it stands above the table of contents.
    """

    anchor: str
    title: str
    values: Any
    top: bool = False


def whole_page(
    title: str, template: str, parts: Iterable[Part | None], document: Mapping[str, Any], summary: str = ""
) -> str:
    """A page of the sections that have content.

    Args:
        title: Of the page.
        template: The file with a macro for each section, such as ``report/page.html``.
        parts: Sections in their order; None is left out.
        document: Whose ``versions`` and ``run`` say what made the page, and when.
        summary: A line under the title.
    """
    shown = [part for part in parts if part is not None]
    return _environment().get_template(FRAME).render(
        title=title, template=template, parts=shown, summary=summary, made=made_words(document)
    )  # fmt: skip


def made_words(document: Mapping[str, Any]) -> str:
    """When a page was made and by what; the one line of it that two runs with equal settings may have different."""
    versions: Mapping[str, str] = document.get("versions", {})
    date = document.get("run", {}).get("date")
    by = [f"{NAMES.get(name, name)} {version}" for name, version in versions.items()]
    parts = [f"on {date}"] if date else []
    parts += [f"with {', '.join(by)}"] if by else []
    return f"Made {' '.join(parts)}." if parts else ""


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


# ---------------------------------------------------------------- values that many sections have


@dataclass(frozen=True)
class Cell:
    """A cell of a table that does not look like the others.

    Attributes:
        text: What it says.
        look: ``interval``, ``strong``, ``gain`` or ``loss``, all with what is in brackets faint; ``code``, ``name`` (of
            other people).
    """

    text: str
    look: str


@dataclass(frozen=True)
class Table:
    """A table, which scrolls sideways by itself where it is wider than the page.

    Attributes:
        name: For those who do not see it.
        head: The names of the columns; all empty for a table without a heading.
        body: Rows of text, numbers and `Cell`; a row of one cell is a heading.
        look: A class of page.css.
    """

    name: str
    head: Sequence[Any]
    body: Sequence[Sequence[Any]]
    look: str = ""


@dataclass(frozen=True)
class Drawing:
    """A chart with its caption, which may be empty."""

    chart: Element
    caption: str = ""
