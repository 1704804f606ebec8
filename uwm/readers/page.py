"""The page of what was measured of a reader; images and captions only where examples were asked for."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup

from ..report.document import versions
from ..report.markup import join, tag
from ..report.parts import cell, change_cells, folded, provenance, section, table, whole_page
from ..text_tables import percent
from .outcome import ReaderOutcome, Thumbnail, described

CAUTION = "An edit lowers a risk, it does not remove it. These figures hold for these inputs; measure on your own."
SHOWN = "Drawn at random, not chosen. A dashed frame marks an unsafe input, a solid one a safe input."


def reader_page(outcome: ReaderOutcome) -> str:
    """One HTML page that needs nothing beside it."""
    document = {"settings": outcome.settings, "versions": versions(), "model": {}}
    parts = [_figures(outcome), _concepts(outcome), _examples(outcome), provenance(document)]
    return whole_page(outcome.title, *parts)


def _figures(outcome: ReaderOutcome) -> Markup:
    columns, changed = [*outcome.results], bool(outcome.changes)
    head = ("", *columns, *(("difference", "gained", "lost") if changed else ()))
    body = [*_rows(outcome, changed)]
    meanings = [join([tag("dt", figure.label), tag("dd", f"{figure.meaning}.")]) for figure in outcome.known.values()]
    judges = [tag("li", tag("b", f"{name}: "), words) for name, words in outcome.judges.items()]
    about = (
        "Percent with 95 % intervals (bootstrap; exact at 0 and 100). The difference is the model's to the baseline in "
        "points, input by input, with its paired interval; gained and lost: for how many the value rose and fell."
    )
    return section(
        "Figures",
        "figures",
        tag("p", tag("bdi", outcome.heading()), class_="verdict"),
        _requirements(outcome),
        table(head, body, "Figures", "numbers"),
        tag("p", f"{about} {CAUTION}"),
        tag("ul", *judges) if judges else None,
        folded("What the figures mean", tag("dl", *meanings)),
    )


def _rows(outcome: ReaderOutcome, changed: bool) -> Iterator[tuple[object, ...]]:
    for name, figure in outcome.known.items():
        cells = [cell(r.figures[name]) if name in r.figures else "" for r in outcome.results.values()]
        change: tuple[object, ...] = ("", "", "") if changed else ()
        if name in outcome.changes:
            change = change_cells(name, outcome.changes[name])
        yield (described(figure), *cells, *change)


def _requirements(outcome: ReaderOutcome) -> Markup | None:
    if not outcome.verdicts:
        return None
    body = [
        (v.requirement, str(v), "met" if v.met else tag("strong", "not met", class_="loss")) for v in outcome.verdicts
    ]
    return table(("requirement", "", ""), body, "Requirements")


def _concepts(outcome: ReaderOutcome) -> Markup | None:
    columns = {name: result for name, result in outcome.results.items() if result.by_concept}
    if not columns:
        return None
    tables = []
    for column, result in columns.items():
        body = [
            (concept, *(percent(figures[name][0]) if name in figures else "" for name in outcome.known))
            for concept, figures in result.by_concept.items()
        ]
        head = ("", *(described(figure) for figure in outcome.known.values()))
        tables.append(join([tag("h3", column), table(head, body, f"By concept, {column}", "numbers")]))
    return section("By concept", "concepts", tag("p", "Means in percent."), *tables)


def _examples(outcome: ReaderOutcome) -> Markup | None:
    if not outcome.examples:
        return None
    head = ("input", *outcome.results)
    body = [
        (_shown(example.given, example.side), *(_shown(example.made[c], example.side) for c in outcome.results))
        for example in outcome.examples
    ]
    content = table(head, body, "Examples")
    return section("Examples", "examples", tag("p", SHOWN), folded("Show inputs and what was made of them", content))


def _shown(content: str | Thumbnail, side: str) -> Markup:
    if isinstance(content, str):
        return tag("bdi", content, class_=f"item {side}")
    return tag("img", src=content.uri, alt=f"{side} image", width=64, class_=f"item {side}")
