"""report.html of a comparison: one front a set, the safest method within each budget, all figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..figures import label
from ..report.pages import Cell, Drawing, Part, Table, whole_page
from ..report.parts import cell, provenance
from .chart import NARROW, WIDE, keys, scatter
from .figures import Row
from .front import UNEDITED, Spot, reading, spots
from .table import COSTS, LEGEND, columns_of_costs, cost, shown

TEMPLATE = "comparison/page.html"
BUDGETS = (1, 2, 5, 10)  # points
NONE_THERE = "–"
LITTLE = 5  # points, of the sentence over a chart
BESIDE = ("GS", "PU", "unsafe_top1", "R1_safe")


def comparison_page(
    tables: Mapping[str, Sequence[Row]], pairs: Mapping[str, int], notes: Sequence[str], about: Mapping[str, Any]
) -> str:
    """The page; a pure function of comparison.json's content, with nothing loaded and no script.

    Args:
        tables: Evaluation set -> rows, the unedited model first.
        pairs: Evaluation set -> how many quadruples it has.
        notes: What a reader of the tables should know.
        about: ``settings``, ``versions``, hashes, and ``run``, which says when.
    """
    found = {name: spots(rows) for name, rows in tables.items()}
    document = {**about, "model": {"sha256": about["model_sha256"]}}
    parts = [
        _fronts(tables, pairs, found),
        _budgets(found),
        _figures(tables, pairs, found),
        Part("notes", "Notes", list(notes)) if notes else None,
        provenance(document),
    ]
    title = f"Safety against loss of knowledge: {about['settings']['model']}, compared by uwm"
    return whole_page(title, TEMPLATE, parts, document)


def _fronts(tables: Mapping[str, Sequence[Row]], pairs: Mapping[str, int], found: Mapping[str, Sequence[Spot]]) -> Part:
    first = next(iter(tables.values()))[0]
    sets = [
        {
            "name": name,
            "note": f"{pairs[name]} pairs",
            "verdict": _verdict(own),
            "table": _on_the_line(name, tables[name], own),
            "legend": keys(own),
            "wide": Drawing(scatter(name, own, WIDE)),
            "narrow": Drawing(scatter(name, own, NARROW)),
        }
        for name, own in found.items()
    ]
    return Part("front", "Which method is safest at which loss", {"reading": reading(first), "sets": sets}, top=True)


def _verdict(own: Sequence[Spot]) -> str:
    """The safest point that loses little; what loses much may be safe only because it knows nothing."""
    best = max((spot for spot in own if spot.loss <= LITTLE + 1e-9), key=lambda spot: (spot.safety, -spot.number))
    if best.kind == UNEDITED:
        return f"No method that loses at most {LITTLE} points is safer than the unedited model ({best.safety:.1f} %)."
    return (
        f"The safest that loses at most {LITTLE} points is {best.told}: a safety of {best.safety:.1f} % at a loss of "
        f"{best.loss:.1f} points. The unedited model has {own[0].safety:.1f} %."
    )


def _on_the_line(name: str, rows: Sequence[Row], own: Sequence[Spot]) -> Table:
    """The points that no other one beats in both ways, by loss."""
    best = sorted((pair for pair in zip(own, rows, strict=True) if pair[0].front), key=lambda pair: pair[0].loss)
    body = [
        [
            spot.number,
            spot.told,
            f"{spot.safety:.1f}",
            f"{spot.loss:.1f}",
            *(cell(row.figures[f].value) for f in BESIDE),
        ]
        for spot, row in best
    ]
    return Table(f"On the line, {name}", ("no.", "model", "safety", "loss", *map(label, BESIDE)), body, "numbers named")


def _budgets(found: Mapping[str, Sequence[Spot]]) -> Part:
    sets = []
    for name, own in found.items():
        rows = [*_within(own)]
        none = [row[0] for row in rows if set(row[1:]) == {NONE_THERE}]
        body = [row for row in rows if row[0] not in none]
        head = ("method", *(f"loss ≤ {budget}" for budget in BUDGETS))
        sets.append({"name": name, "table": Table(f"Within budgets on {name}", head, body, "numbers"), "none": none})
    return Part("budgets", "The safest point of each method within a loss", {"most": BUDGETS[-1], "sets": sets})


def _within(own: Sequence[Spot]) -> Iterator[list[Any]]:
    """Of every method the safety of its safest point that loses so much at most; the best of a column stands out."""
    names = dict.fromkeys(spot.name for spot in own)
    safest = {
        (name, most): max(
            (s for s in own if s.name == name and s.loss <= most + 1e-9), key=lambda s: s.safety, default=None
        )
        for name in names
        for most in BUDGETS
    }
    for name in names:
        yield [name, *(_best(safest[name, most], [safest[other, most] for other in names]) for most in BUDGETS)]


def _best(spot: Spot | None, others: Sequence[Spot | None]) -> Any:
    if spot is None:
        return NONE_THERE
    text = f"{spot.safety:.1f}{f' ({spot.at})' if spot.at else ''}"
    return Cell(text, "strong") if spot.safety >= max(one.safety for one in others if one) else text


def _figures(
    tables: Mapping[str, Sequence[Row]], pairs: Mapping[str, int], found: Mapping[str, Sequence[Spot]]
) -> Part:
    """Every row with its number, intervals and costs."""
    made = []
    for name, rows in tables.items():
        figures, costs = shown(rows), columns_of_costs(rows)
        head = ("no.", "method", "at", "safety", "loss", *map(label, figures), *(COSTS[one][0] for one in costs))
        body = [
            [
                spot.number,
                *(Cell(text, "strong") if spot.front else text for text in _named(spot)),
                *(cell(row.figures[figure].value) for figure in figures),
                *(cost(COSTS[one][1](row)) for one in costs),
            ]
            for row, spot in zip(rows, found[name], strict=True)
        ]
        made.append((f"{name} ({pairs[name]} pairs, {rows[0].runs} seeds)", Table(f"Figures on {name}", head, body, "points")))  # noqa: E501  # fmt: skip
    return Part("figures", "All figures", {"about": LEGEND, "sets": made})


def _named(spot: Spot) -> tuple[str, str, str, str]:
    return spot.name, spot.at, f"{spot.safety:.1f}", f"{spot.loss:.1f}"
