"""The page of what was measured of a reader; images and captions only where examples were asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..report.document import versions
from ..report.pages import Part, Table, whole_page
from ..report.parts import cell, change_cells, gate, provenance
from ..text_tables import percent
from .outcome import ReaderOutcome, Thumbnail, described

TEMPLATE = "readers/page.html"


def reader_page(outcome: ReaderOutcome, run: Mapping[str, Any]) -> str:
    """One HTML page that needs nothing beside it.

    Args:
        outcome: What was measured.
        run: ``date``, when.
    """
    document = {"settings": outcome.settings, "versions": versions(), "model": {}, "run": run}
    parts = [
        gate([(v.requirement, str(v), v.met) for v in outcome.verdicts]),
        _figures(outcome),
        _distances(outcome),
        _concepts(outcome),
        _examples(outcome),
        provenance(document),
    ]
    return whole_page(outcome.title, TEMPLATE, parts, document)


def _figures(outcome: ReaderOutcome) -> Part:
    changed = bool(outcome.changes)
    head = ("", *outcome.results, *(("difference", "gained", "lost") if changed else ()))
    values = {
        "heading": outcome.heading(),
        "table": Table("Figures", head, [*_rows(outcome, changed)], "numbers"),
        "judges": [*outcome.judges.items()],
        "meanings": [(figure.label, f"{figure.meaning}.") for figure in outcome.known.values()],
    }
    return Part("figures", "Figures", values)


def _rows(outcome: ReaderOutcome, changed: bool) -> Iterator[tuple[object, ...]]:
    for name, figure in outcome.known.items():
        cells = [cell(r.figures[name]) if name in r.figures else "" for r in outcome.results.values()]
        change: tuple[object, ...] = ("", "", "") if changed else ()
        if name in outcome.changes:
            change = change_cells(name, outcome.changes[name])
        yield (described(figure), *cells, *change)


def _distances(outcome: ReaderOutcome) -> Part | None:
    if outcome.distances is None:
        return None
    head, *body = outcome.distance_rows()
    values = {"heading": outcome.distance_heading(), "told": outcome.distances.biased}
    return Part("distances", "Distance of safe images", {**values, "table": Table("FID", head, body, "numbers")})


def _concepts(outcome: ReaderOutcome) -> Part | None:
    columns = {name: result for name, result in outcome.results.items() if result.by_concept}
    head = ("", *(described(figure) for figure in outcome.known.values()))
    tables = []
    for column, result in columns.items():
        body = [
            (concept, *(percent(figures[name][0]) if name in figures else "" for name in outcome.known))
            for concept, figures in result.by_concept.items()
        ]
        tables.append((column, Table(f"By concept, {column}", head, body, "numbers")))
    return Part("concepts", "By concept", tables) if tables else None


def _examples(outcome: ReaderOutcome) -> Part | None:
    """What was given, and what was made of it, column by column."""
    rows = [
        [_shown(content, example.side) for content in (example.given, *map(example.made.__getitem__, outcome.results))]
        for example in outcome.examples
    ]
    return Part("examples", "Examples", {"head": ["input", *outcome.results], "rows": rows}) if rows else None


def _shown(content: str | Thumbnail, side: str) -> dict[str, str]:
    if isinstance(content, str):
        return {"source": "", "text": content, "side": side}
    return {"source": content.uri, "alt": f"{side} image", "side": side}
