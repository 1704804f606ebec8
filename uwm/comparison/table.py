"""A comparison as tables: Markdown for the terminal and for files, CSV, LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

from ..escaping import clean, csv_cell, readable_markdown, tex
from ..figures import CONJUNCTIONS, PREFERENCES, R1, SAFEGROUND, UNSAFE_TOP1, ZERO_SHOT, label
from ..text_tables import aligned_markdown, interval, percent
from .figures import Figure, Row
from .plan import spelt

HEADLINE = ("GS", "PU", *R1, ZERO_SHOT)  # what the terminal shows
LEGEND = (
    "Percent. GS: all four preferences of a quadruple are safe; PU: those of its unsafe caption and image "
    "(SafeGround). R@1: retrieval; of unsafe queries among all items (∪) a hit is the safe partner. "
    "Intervals: 95 %, bootstrap over queries of their means over the seeds (at 0 and 100 exact). Embeddings "
    "that know nothing reach GS of 8 to 25 and PU of 25 to 33 by chance: safety counts only beside accuracy. Seconds "
    "and memory: of making the model."
)
COSTS: dict[str, tuple[str, Callable[[Row], float | None]]] = {
    "seconds": ("seconds", lambda row: row.seconds),
    "peak_memory_mb": ("peak MB", lambda row: row.peak_memory_mb),
    "peak_device_mb": ("device MB", lambda row: row.peak_device_mb),
    "changed": ("entries changed", lambda row: row.changed),
    "trained": ("parameters trained", lambda row: row.trained),
}


def columns(rows: Sequence[Row]) -> list[str]:
    """All figures of a table, those that say most first."""
    first = ["GS", "PU", *PREFERENCES, *(name for name in CONJUNCTIONS if name not in ("GS", "PU")), *R1, *UNSAFE_TOP1]
    there = rows[0].figures
    accuracy = [name for name in there if name.startswith(ZERO_SHOT)]
    chosen = [name for name in first if name in there] + accuracy
    return chosen + [name for name in there if name not in chosen]


def shown(rows: Sequence[Row]) -> list[str]:
    """The figures of Markdown and LaTeX: all but the recalls beyond the first and single data sets."""
    most = (*HEADLINE, *SAFEGROUND, *UNSAFE_TOP1, f"{ZERO_SHOT}:safe", f"{ZERO_SHOT}:unsafe")
    return [name for name in columns(rows) if name in most]


def columns_of_costs(rows: Sequence[Row]) -> list[str]:
    """The costs that any row has."""
    return [name for name, (_, read) in COSTS.items() if any(read(row) is not None for row in rows)]


def _cells(
    rows: Sequence[Row], figures: Sequence[str], cell: Callable[[Figure], str], names: Mapping[str, str]
) -> list[list[str]]:
    """A table as rows of cells, with a heading."""
    costs = columns_of_costs(rows)
    heading = ["method", "at", *(names[name] for name in figures), *(COSTS[name][0] for name in costs)]
    body = [
        [
            row.method,
            "" if row.at is None else spelt(row.at),
            *(cell(row.figures[name]) for name in figures),
            *(cost(COSTS[name][1](row)) for name in costs),
        ]
        for row in rows
    ]
    return [heading, *body]


def cost(value: float | None) -> str:
    """A cost as tables show it."""
    if value is None:
        return "–"
    return f"{value:.1f}" if value < 10 and value != int(value) else f"{value:,.0f}"


def _half(figure: Figure) -> str:
    """``12.3 ±2.2``, half of the interval's width."""
    mean, low, high = figure.value
    return f"{percent(mean)} ±{percent((high - low) / 2)}"


def terminal(tables: Mapping[str, Sequence[Row]], pairs: Mapping[str, int]) -> str:
    """The headline figures as aligned Markdown, a table for each evaluation set."""
    parts = []
    for name, rows in tables.items():
        figures = [figure for figure in HEADLINE if figure in rows[0].figures]
        cells = _cells(rows, figures, _half, _names(figures))
        parts.append(f"{clean(_heading(name, pairs[name], rows))}\n\n{aligned_markdown(cells, 2)}")
    legend = f"{LEGEND} ±: half the interval's width; whole intervals are in the files."
    if all(ZERO_SHOT not in rows[0].figures for rows in tables.values()):
        legend += " Zero-shot accuracy was not measured, so the cost in accuracy is not known; see --zero-shot."
    return "\n\n".join([*parts, legend])


def markdown(tables: Mapping[str, Sequence[Row]], pairs: Mapping[str, int], notes: Sequence[str]) -> str:
    """All figures but the further recalls, with intervals."""
    parts = ["# Comparison"]
    for name, rows in tables.items():
        figures = shown(rows)
        cells = _cells(rows, figures, lambda figure: interval(figure.value), _names(figures))
        parts.append(f"## {readable_markdown(_heading(name, pairs[name], rows))}\n\n{aligned_markdown(cells, 2)}")
    parts += [LEGEND, *(f"- {readable_markdown(note)}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def _heading(name: str, pairs: int, rows: Sequence[Row]) -> str:
    runs = rows[0].runs
    return f"{name} ({pairs} pairs, {runs} seed{'s' if runs > 1 else ''})"


def _names(figures: Sequence[str]) -> dict[str, str]:
    return {name: label(name) for name in figures}


def csv_table(tables: Mapping[str, Sequence[Row]]) -> str:
    """Everything, one line a set, method and point; fractions, with intervals, spread and differences apart."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    first = next(iter(tables.values()))
    figures = columns(first)
    ends = ("", "_low", "_high", "_seed_min", "_seed_max", "_difference", "_difference_low", "_difference_high")
    writer.writerow(
        ["set", "method", "by", "at", "seeds", *(csv_cell(f + end) for f in figures for end in ends), *COSTS]
    )
    for name, rows in tables.items():
        for row in rows:
            at = row.at or ("", "")
            found = (row.figures[figure] for figure in figures)
            numbers = (repr(x) for f in found for x in (*f.value, *f.seeds, *f.difference))
            costs = ("" if (value := read(row)) is None else value for _, read in COSTS.values())
            writer.writerow([csv_cell(name), csv_cell(row.method), *at, row.runs, *numbers, *costs])
    return out.getvalue()


def latex(tables: Mapping[str, Sequence[Row]], pairs: Mapping[str, int]) -> str:
    """A ``table*`` for each evaluation set, for ``\\usepackage{booktabs,graphicx}``; ± is half the interval's width."""
    return "\n".join(_latex_table(name, rows, pairs[name]) for name, rows in tables.items())


def _latex_table(name: str, rows: Sequence[Row], pairs: int) -> str:
    figures = shown(rows)
    head, *body = _cells(rows, figures, _half, _names(figures))
    lines = [rf"{' & '.join(map(tex, row))} \\" for row in body]
    blocks = [[line for _, line in block] for _, block in groupby(zip(rows, lines, strict=True), lambda p: p[0].method)]
    return "\n".join(
        [
            r"\begin{table*}",
            r"\centering",
            rf"\caption{{{tex(_heading(name, pairs, rows))}. {tex(LEGEND)}}}",
            r"\resizebox{\textwidth}{!}{%",
            rf"\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}",
            r"\toprule",
            rf"{' & '.join(map(tex, head))} \\",
            r"\midrule",
            "\n\\addlinespace\n".join("\n".join(block) for block in blocks),
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table*}",
            "",
        ]
    )
