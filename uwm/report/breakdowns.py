"""The parts of the page with details: similarities, concepts, data sets, neutral cases, label noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..figures import FIGURES, OF_DATA_SETS, QUERIES, SAFETY, TOP1, explain, label
from ..knowledge import mean_over_sets
from ..label_noise import REASONS, not_run
from ..manifest import Columns, Manifest
from ..text_tables import percent
from .charts import PERCENT, Row, Scale, bars, dots, histograms, line_of, patch_of, swatch
from .findings import against_reference, roles
from .pages import Cell, Drawing, Part, Table
from .parts import by_set, cell, change_cells, legend

ROWS = 9  # of bars a chart, so that it fits a page of paper


def similarities(document: Manifest) -> Part | None:
    """Histograms of the four kinds of query with their own safe and unsafe item, reference beside judged model."""

    def part(name: str, columns: Columns) -> dict[str, Any] | None:
        reference, judged, _ = roles(list(columns))
        shown = {c: columns[c] for c in (reference, judged) if c is not None}
        if not all(result["similarities"] for result in shown.values()):
            return None
        return {"charts": [_panels(query, name, shown) for query in QUERIES], "table": _counts(name, shown)}

    sets = by_set(document, part)
    lines = {"safe": "with its own safe item", "unsafe": "with its own unsafe item"}
    about = (
        "Cosine of every query with the safe and with the unsafe item of its own pair: how many pairs have which. The "
        "percentage is how often the safe item is the nearer one."
    )
    values = {"about": about, "legend": [(swatch(line_of(s)), text) for s, text in lines.items()], "sets": sets}
    return Part("similarities", "Similarity to the safe and to the unsafe item", values) if sets else None


def _panels(query: str, name: str, shown: Columns) -> Drawing:
    row = [
        (f"{column}: {percent(result['figures'][f'P_{query}'][0])} %", result["similarities"][query])
        for column, result in shown.items()
    ]
    title = f"{QUERIES[query].capitalize()} as the query ({query})"
    used = [result["similarities"] for result in shown.values()]
    return Drawing(histograms(title, f"{name}; numbers in the table below.", row, _range(used)))


def _range(used: Sequence[Mapping[str, Mapping[str, Sequence[int]]]]) -> tuple[int, int, int]:
    """First and last bin that any histogram uses, and the highest count."""
    every = [counts for queries in used for sides in queries.values() for counts in sides.values()]
    bins = [n for counts in every for n, count in enumerate(counts) if count] or [0, 99]
    return min(bins), max(bins) + 1, max(max(counts) for counts in every) or 1


def _counts(name: str, shown: Columns) -> Table:
    lines = {
        f"{column} {query} {side}": counts
        for column, result in shown.items()
        for query in QUERIES
        for side, counts in result["similarities"][query].items()
    }
    used = [n for n in range(100) if any(counts[n] for counts in lines.values())]
    body = [(f"{n / 50 - 1:.2f} to {(n + 1) / 50 - 1:.2f}", *(counts[n] for counts in lines.values())) for n in used]
    return Table(f"Counts of similarities on {name}", ("cosine", *lines), body, "numbers")


def concepts(document: Manifest) -> Part | None:
    """Safety by concept, on one scale."""

    def part(name: str, columns: Columns) -> dict[str, Any] | None:
        first = next(iter(columns.values()))
        if not first["by_concept"]:
            return None
        figures = [f for f in SAFETY if f in first["figures"]]
        head = ("concept", "pairs", *(f"{label(f)} {column}" for f in figures for column in columns))
        body = [
            (concept, count, *(cell(r["by_concept"][concept][f]) for f in figures for r in columns.values()))
            for concept, count in first["concept_pairs"].items()
        ]
        return {
            "legend": legend(list(columns), patch_of),
            "charts": [chart for f in figures for chart in _concept_bars(f, name, columns)],
            "table": Table(f"By concept on {name}", head, body, "numbers"),
        }

    sets = by_set(document, part)
    about = "Percent of each concept's pairs, with 95 % intervals. With few pairs an interval says little."
    return Part("concepts", "By concept", {"about": about, "sets": sets}) if sets else None


def _concept_bars(name: str, set_name: str, columns: Columns) -> Iterator[Drawing]:
    pairs = next(iter(columns.values()))["concept_pairs"]
    rows = [
        Row(concept, {c: r["by_concept"][concept][name] for c, r in columns.items()}, f"{count} pairs")
        for concept, count in pairs.items()
    ]
    for start in range(0, len(rows), ROWS):
        title = f"{label(name)} by concept, {set_name}"
        chart = bars(title, "Numbers in the table below.", rows[start : start + ROWS], list(columns), PERCENT)
        yield Drawing(chart, f"{label(name)}: {explain(name)}")


def zero_shot(document: Manifest) -> Part | None:
    """Zero-shot accuracy by data set, and its paired changes, image by image."""
    found = [
        {
            "accuracies": _accuracies(name, {c: r["zero_shot"] for c, r in columns.items()}),
            "changes": _accuracy_changes(document, name, columns),
        }
        for name, columns in document["results"].items()
        if next(iter(columns.values()))["zero_shot"]
    ]
    return Part("zero-shot", "Zero-shot accuracy", found) if found else None


def _accuracies(set_name: str, columns: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    first = next(iter(columns.values()))
    rows = [
        Row(name, {c: _top1(found[name]) for c, found in columns.items()}, f"{figures['pictures']} images")
        for name, figures in first.items()
    ]
    charts = (
        bars("Zero-shot top-1 accuracy", "Numbers in the table.", rows[i : i + ROWS], list(columns), PERCENT)
        for i in range(0, len(rows), ROWS)
    )
    body: list[Sequence[object]] = [
        line
        for name, figures in first.items()
        for line in ((Cell(name, "name"),), *_accuracy_lines(figures, [found[name] for found in columns.values()]))
    ]
    if len(first) > 1:
        means = [mean_over_sets(found) for found in columns.values()]
        body += [("Mean over data sets",), *((FIGURES[k].short, *(percent(m[k]) for m in means)) for k in means[0])]
    return {
        "legend": legend(list(columns), patch_of),
        "charts": [Drawing(chart) for chart in charts],
        "table": Table(f"Zero-shot accuracy, {set_name}", ("", *columns), body, "numbers"),
    }


def _accuracy_lines(figures: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[object]]:
    for key in OF_DATA_SETS:
        if key in figures:
            yield FIGURES[key].short, *(cell(_top1(r)) if key == "top1" else percent(r[key]) for r in results)


def _top1(figures: Mapping[str, Any]) -> tuple[float, float, float]:
    low, high = figures["top1_interval"]
    return figures["top1"], low, high


def _accuracy_changes(document: Manifest, name: str, columns: Columns) -> dict[str, Any] | None:
    """Paired differences to the reference, image by image."""
    reference, series = roles(list(columns))[0], list(columns)
    found = against_reference(columns, document.get("differences", {}).get(name, {}))
    sets = [key for key in next(iter(found.values()), {}) if key.startswith(TOP1)]
    if not sets:
        return None
    rows = [Row(key.removeprefix(TOP1), {c: d[key]["difference"] for c, d in found.items()}) for key in sets]
    scale = Scale.around([v for row in rows for interval in row.values.values() for v in interval], "change in points")
    told = "Points with 95 % intervals; numbers in the table."
    body = [
        (Cell(row.label, "name"), *(part for d in found.values() for part in change_cells(key, d[key])))
        for key, row in zip(sets, rows, strict=True)
    ]
    head = ("", *(part for column in found for part in (column, "gained", "lost")))
    return {
        "about": f"Change of top-1 against “{reference}”, image by image, in points with paired 95 % intervals.",
        "legend": legend(series, shown=list(found)),
        "charts": [Drawing(dots("Change of zero-shot accuracy", told, rows, series, scale))],
        "table": Table(f"Change of zero-shot accuracy, {name}", head, body, "numbers"),
    }


def checks(document: Manifest) -> Part | None:
    """Neutral cases of the score, pairs left out, doubted labels."""
    values = {"neutral": _neutral_cases(document), "skipped": _skipped(document), "noise": _label_noise(document)}
    return Part("checks", "Neutral cases and doubted labels", values) if any(values.values()) else None


def _neutral_cases(document: Manifest) -> dict[str, Any] | None:
    layers = document.get("layers", {})
    neutral = {name: layer["notes"].get("neutral", {}) for name, layer in layers.items()}
    names = sorted({kind for counts in neutral.values() for kind in counts})
    if not names:
        return None
    counts = {name: [found.get(kind, 0) for kind in names] for name, found in neutral.items()}
    body = [(name, *numbers) for name, numbers in counts.items() if any(numbers)]
    if not body:
        none = f"There was no neutral case in {len(layers)} matrices: the score could judge every entry."
        return {"about": none, "table": None}
    words = [name.replace("_", " ") for name in names]
    totals = ", ".join(f"{sum(numbers[n] for numbers in counts.values())} {word}" for n, word in enumerate(words))
    about = f"Cases that the score cannot judge count as neutral. In {len(body)} of {len(layers)} matrices: {totals}."
    return {"about": about, "table": Table("Neutral cases by matrix", ("matrix", *words), body, "numbers")}


def _skipped(document: Manifest) -> str:
    skipped = {why: count for why, count in document.get("calibration", {}).get("skipped", {}).items() if count}
    counts = ", ".join(f"{count} {why.replace('_', ' ')}" for why, count in skipped.items())
    return f"Pairs left out of calibration: {counts}." if counts else ""


def _label_noise(document: Manifest) -> dict[str, Any] | None:
    noise = document.get("label_noise")
    if not noise:
        return None
    about = (
        f"{noise['flagged']} of {noise['checked']} calibration pairs are doubted ({percent(noise['share'])} %), for "
        "one reason or more. Concepts that the model does not know are doubted too."
        if noise["checked"]
        else "No pair could be checked."
    )
    idle = not_run(noise)
    body = [(text, f"not run: {idle[r]}" if r in idle else noise[r]) for r, text in REASONS.items()]
    return {"about": about, "table": Table("Label noise", ("doubt", "pairs"), body, "numbers")}
