"""The building blocks of the page: sections, tables that scroll by themselves, figures, legends."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..figures import LEAST_FIRM_PAIRS
from ..manifest import Columns, Manifest
from ..text_tables import percent
from .charts import mark, swatch
from .findings import better
from .markup import join, tag
from .tables import points, shared_words

STYLE = Path(__file__).with_name("page.css")
MARK = tag("meta", name="generator", content="uwm")  # by it a page is known as ours, which may be replaced
HEADING = re.compile(r'<section id="([^"]*)"><h2>(.*?)</h2>')
HEAD = 4096  # bytes in which it stands


def whole_page(title: str, *parts: Markup | None) -> str:
    """A page that needs nothing beside it: inline CSS, no script, nothing loaded."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        MARK,
        tag("title", title),
        tag("style", Markup(STYLE.read_text("utf-8"))),
    )
    body = tag("body", tag("main", tag("h1", tag("bdi", title)), *parts))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def is_page(path: Path) -> bool:
    """Whether a file is a page that uwm wrote."""
    with path.open("rb") as file:
        start = file.read(HEAD)
    return start.startswith(b"<!doctype html>") and str(MARK).encode() in start


def section(title: str, anchor: str, *parts: Markup | None) -> Markup:
    return tag("section", tag("h2", title), *parts, id=anchor)


def contents(parts: Sequence[Markup | None]) -> Markup:
    """Links to the sections of a page, in its order."""
    found = [HEADING.match(str(part)) for part in parts if part is not None]
    links = (Markup('<li><a href="#{}">{}</a></li>').format(m[1], Markup(m[2])) for m in found if m)
    return tag("nav", tag("ul", *links), aria_label="Contents")


def figure(chart: Markup, caption: object = None) -> Markup:
    return tag("figure", tag("figcaption", caption) if caption else None, chart)


def beside(*parts: Markup) -> Markup:
    """A chart and its table next to each other where there is room."""
    return tag("div", *parts, class_="beside")


def grid(figures: Iterable[Markup]) -> Markup:
    return tag("div", *figures, class_="charts")


def table(head: Sequence[object], body: Iterable[Sequence[object]], name: str, class_: str | None = None) -> Markup:
    """A table that scrolls sideways by itself where it is wider than the page; a row of one cell is a heading."""
    first = tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in head))) if any(head) else None
    rest = (_line(row, len(head)) for row in body)
    whole = tag("table", first, tag("tbody", *rest), class_=class_)
    return tag("div", whole, class_="scroll", role="region", aria_label=name, tabindex=0)


def _line(row: Sequence[object], columns: int) -> Markup:
    if len(row) == 1:
        return tag("tr", tag("th", row[0], scope="rowgroup", colspan=columns))
    return tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:]))


def folded(summary: str, *parts: Markup | None) -> Markup:
    return tag("details", tag("summary", summary), *parts)


def legend(series: Sequence[str], sign: Callable[[int], Markup] = mark, shown: Sequence[str] | None = None) -> Markup:
    """The signs of the series; of those `shown` only, where not all are."""
    named = [(n, name) for n, name in enumerate(series) if shown is None or name in shown]
    return tag("p", *(tag("span", swatch(sign(n)), name) for n, name in named), class_="legend")


def cell(interval: Sequence[float]) -> Markup:
    """A mean, and its interval where there is one to wrap."""
    mean, low, high = interval
    return join([percent(mean), " ", tag("span", f"[{percent(low)}, {percent(high)}]", class_="interval")])


def change_cells(name: str, found: Mapping[str, Any]) -> tuple[object, ...]:
    """The cells of a paired difference, marked where the exact paired test says that it is more than chance."""
    sign = better(name, found)
    text = points(found["difference"]).replace(" points", "")
    marked = tag("strong", text, class_="gain" if sign > 0 else "loss") if sign else text
    return marked, found["gained"], found["lost"]


def by_set(document: Manifest, part: Callable[[str, Columns], Markup | None]) -> Markup | None:
    """A part for every evaluation set under its name; None where no set has it."""
    made = [(name, columns, part(name, columns)) for name, columns in document["results"].items()]
    shown = [
        join([_set_heading(document, name, columns), content]) for name, columns, content in made if content is not None
    ]
    return join(shown) if shown else None


def _set_heading(document: Manifest, name: str, columns: Columns) -> Markup:
    pairs = next(iter(columns.values()))["pairs"]
    few = f"; fewer than {LEAST_FIRM_PAIRS} are too few for firm figures" if pairs < LEAST_FIRM_PAIRS else ""
    shared = f"; {words}" if (words := shared_words(document, name)) else ""
    return tag("h3", tag("bdi", name), " ", tag("small", f"{pairs} pairs{few}{shared}"))


def provenance(document: Mapping[str, Any]) -> Markup:
    """What a result came from: settings, versions and hashes."""
    kinds = [
        ("Settings", list(_lines(document.get("settings", {})))),
        ("Versions", list(_lines(document.get("versions", {})))),
        ("sha256", list(_hashes(document))),
    ]
    tables = [
        join([tag("h3", title), table(("", ""), [(name, tag("code", value)) for name, value in rows], title, "values")])
        for title, rows in kinds
        if rows
    ]
    return section("Settings, versions, hashes", "settings", *tables)


def _lines(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if value is None or value in ("", [], {}):
            continue  # not given
        yield key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _hashes(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for what, files in (("base", document["model"].get("sha256", {})), ("output", document.get("output_sha256", {}))):
        for name, digest in files.items():
            yield f"{what}: {name}", digest
    if "calibration" in document and (of_set := document["calibration"].get("sha256")):
        yield f"calibration set: {document['calibration']['name']}", of_set
    if of_pairs := document.get("pairs_sha256"):
        yield "pairs", of_pairs
