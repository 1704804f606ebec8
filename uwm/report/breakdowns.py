"""The parts of the page with details: similarities, concepts, data sets, neutral cases, label noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ..figures import FIGURES, OF_DATA_SETS, QUERIES, SAFETY, TOP1, explain, label
from ..knowledge import mean_over_sets
from ..label_noise import REASONS, not_run
from ..manifest import Columns, Manifest
from ..text_tables import percent
from .charts import PERCENT, Row, Scale, bars, dots, histograms, line_of, patch_of, swatch
from .findings import against_reference, roles
from .markup import join, tag
from .parts import beside, by_set, cell, change_cells, figure, folded, grid, legend, section, table

ROWS = 9  # of bars a chart, so that it fits a page of paper


# ---------------------------------------------------------------- similarities


def similarities(document: Manifest) -> Markup | None:
    """Histograms of the four kinds of query with their own safe and unsafe item, reference beside judged model."""

    def part(name: str, columns: Columns) -> Markup | None:
        reference, judged, _ = roles(list(columns))
        shown = {c: columns[c] for c in (reference, judged) if c is not None}
        if not all(result["similarities"] for result in shown.values()):
            return None
        charts = [figure(_panels(query, name, shown)) for query in QUERIES]
        return join([tag("div", *charts, class_="charts two"), folded("Table of the counts", _counts(name, shown))])

    content = by_set(document, part)
    if content is None:
        return None
    lines = {"safe": "with its own safe item", "unsafe": "with its own unsafe item"}
    key = tag("p", *(tag("span", swatch(line_of(s)), text) for s, text in lines.items()), class_="legend")
    about = (
        "Cosine of every query with the safe and with the unsafe item of its own pair: how many pairs have which. The "
        "percentage is how often the safe item is the nearer one."
    )
    return section("Similarities", "similarities", tag("p", about), key, content)


def _panels(query: str, name: str, shown: Columns) -> Markup:
    row = [
        (f"{column}: {percent(result['figures'][f'P_{query}'][0])} %", result["similarities"][query])
        for column, result in shown.items()
    ]
    title = f"{QUERIES[query].capitalize()} as the query ({query})"
    used = [result["similarities"] for result in shown.values()]
    return histograms(title, f"{name}; numbers in the table below.", row, _range(used))


def _range(used: Sequence[Mapping[str, Mapping[str, Sequence[int]]]]) -> tuple[int, int, int]:
    """First and last bin that any histogram uses, and the highest count."""
    every = [counts for queries in used for sides in queries.values() for counts in sides.values()]
    bins = [n for counts in every for n, count in enumerate(counts) if count] or [0, 99]
    return min(bins), max(bins) + 1, max(max(counts) for counts in every) or 1


def _counts(name: str, shown: Columns) -> Markup:
    lines = {
        f"{column} {query} {side}": counts
        for column, result in shown.items()
        for query in QUERIES
        for side, counts in result["similarities"][query].items()
    }
    used = [n for n in range(100) if any(counts[n] for counts in lines.values())]
    body = [(f"{n / 50 - 1:.2f} to {(n + 1) / 50 - 1:.2f}", *(counts[n] for counts in lines.values())) for n in used]
    return table(("cosine", *lines), body, f"Counts of similarities on {name}", "numbers")


# ---------------------------------------------------------------- concepts


def concepts(document: Manifest) -> Markup | None:
    """Safety by concept, on one scale."""

    def part(name: str, columns: Columns) -> Markup | None:
        first = next(iter(columns.values()))
        if not first["by_concept"]:
            return None
        figures = [f for f in SAFETY if f in first["figures"]]
        charts = [chart for f in figures for chart in _concept_bars(f, name, columns)]
        head = ("concept", "pairs", *(f"{label(f)} {column}" for f in figures for column in columns))
        body = [
            (concept, count, *(cell(r["by_concept"][concept][f]) for f in figures for r in columns.values()))
            for concept, count in first["concept_pairs"].items()
        ]
        whole = folded("Table by concept", table(head, body, f"By concept on {name}", "numbers"))
        return join([legend(list(columns), patch_of), grid(charts), whole])

    content = by_set(document, part)
    if content is None:
        return None
    about = "Percent of each concept's pairs, with 95 % intervals. With few pairs an interval says little."
    return section("By concept", "concepts", tag("p", about), content)


def _concept_bars(name: str, set_name: str, columns: Columns) -> Iterator[Markup]:
    pairs = next(iter(columns.values()))["concept_pairs"]
    rows = [
        Row(concept, {c: r["by_concept"][concept][name] for c, r in columns.items()}, f"{count} pairs")
        for concept, count in pairs.items()
    ]
    for start in range(0, len(rows), ROWS):
        title = f"{label(name)} by concept, {set_name}"
        chart = bars(title, "Numbers in the table below.", rows[start : start + ROWS], list(columns), PERCENT)
        yield figure(chart, f"{label(name)}: {explain(name)}")


# ---------------------------------------------------------------- zero-shot accuracy


def zero_shot(document: Manifest) -> Markup | None:
    """Zero-shot accuracy by data set, and its paired changes, image by image."""
    parts: list[Markup | None] = []
    for name, columns in document["results"].items():
        if next(iter(columns.values()))["zero_shot"]:
            parts += [_accuracies(name, {c: r["zero_shot"] for c, r in columns.items()})]
            parts += [_accuracy_changes(document, name, columns)]
    about = tag("p", "In percent, with 95 % intervals.")
    return section("Zero-shot accuracy", "zero-shot", about, *parts) if parts else None


def _accuracies(set_name: str, columns: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Markup:
    first = next(iter(columns.values()))
    rows = [
        Row(name, {c: _top1(found[name]) for c, found in columns.items()}, f"{figures['pictures']} images")
        for name, figures in first.items()
    ]
    charts = (
        bars("Zero-shot top-1 accuracy", "Numbers in the table.", rows[i : i + ROWS], list(columns), PERCENT)
        for i in range(0, len(rows), ROWS)
    )
    body = [
        line
        for name, figures in first.items()
        for line in ((tag("bdi", name),), *_accuracy_lines(figures, [found[name] for found in columns.values()]))
    ]
    if len(first) > 1:
        means = [mean_over_sets(found) for found in columns.values()]
        body += [("Mean over data sets",), *((FIGURES[k].short, *(percent(m[k]) for m in means)) for k in means[0])]
    numbers = table(("", *columns), body, f"Zero-shot accuracy, {set_name}", "numbers")
    return join([legend(list(columns), patch_of), beside(tag("div", *map(figure, charts)), numbers)])


def _accuracy_lines(figures: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[object]]:
    for key in OF_DATA_SETS:
        if key in figures:
            yield FIGURES[key].short, *(cell(_top1(r)) if key == "top1" else percent(r[key]) for r in results)


def _top1(figures: Mapping[str, Any]) -> tuple[float, float, float]:
    low, high = figures["top1_interval"]
    return figures["top1"], low, high


def _accuracy_changes(document: Manifest, name: str, columns: Columns) -> Markup | None:
    """Paired differences to the reference, image by image."""
    reference, series = roles(list(columns))[0], list(columns)
    found = against_reference(columns, document.get("differences", {}).get(name, {}))
    sets = [key for key in next(iter(found.values()), {}) if key.startswith(TOP1)]
    if not sets:
        return None
    rows = [Row(key.removeprefix(TOP1), {c: d[key]["difference"] for c, d in found.items()}) for key in sets]
    scale = Scale.around([v for row in rows for interval in row.values.values() for v in interval], "change in points")
    head = ("", *(part for column in found for part in (column, "gained", "lost")))
    body = [
        (tag("bdi", row.label), *(part for d in found.values() for part in change_cells(key, d[key])))
        for key, row in zip(sets, rows, strict=True)
    ]
    chart = dots(
        "Change of zero-shot accuracy", "Points with 95 % intervals; numbers in the table.", rows, series, scale
    )
    numbers = table(head, body, f"Change of zero-shot accuracy, {name}", "numbers")
    about = tag("p", f"Change of top-1 against “{reference}”, image by image, in points with paired 95 % intervals.")
    return join([about, legend(series, shown=list(found)), beside(figure(chart), numbers)])


# ---------------------------------------------------------------- neutral cases and label noise


def checks(document: Manifest) -> Markup | None:
    """Neutral cases of the score, pairs left out, doubted labels."""
    parts = [_neutral_cases(document), _skipped(document), _label_noise(document)]
    return section("Neutral cases and label noise", "checks", *parts) if any(parts) else None


def _neutral_cases(document: Manifest) -> Markup | None:
    if not (layers := document.get("layers")):
        return None
    neutral = {name: layer["notes"].get("neutral", {}) for name, layer in layers.items()}
    names = sorted({kind for counts in neutral.values() for kind in counts})
    if not names:
        return None
    counts = {name: [found.get(kind, 0) for kind in names] for name, found in neutral.items()}
    body = [(name, *numbers) for name, numbers in counts.items() if any(numbers)]
    if not body:
        return tag("p", f"There was no neutral case in {len(layers)} matrices: the score could judge every entry.")
    words = [name.replace("_", " ") for name in names]
    totals = ", ".join(f"{sum(numbers[n] for numbers in counts.values())} {word}" for n, word in enumerate(words))
    about = f"Cases that the score cannot judge count as neutral. In {len(body)} of {len(layers)} matrices: {totals}."
    whole = folded("Table of these matrices", table(("matrix", *words), body, "Neutral cases by matrix", "numbers"))
    return join([tag("h3", "Neutral cases"), tag("p", about), whole])


def _skipped(document: Manifest) -> Markup | None:
    skipped = {why: count for why, count in document.get("calibration", {}).get("skipped", {}).items() if count}
    if not skipped:
        return None
    counts = ", ".join(f"{count} {why.replace('_', ' ')}" for why, count in skipped.items())
    return tag("p", f"Pairs left out of calibration: {counts}.")


def _label_noise(document: Manifest) -> Markup | None:
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
    reasons = table(("doubt", "pairs"), body, "Label noise", "numbers")
    return join([tag("h3", "Label noise"), tag("p", about), reasons])
