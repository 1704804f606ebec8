"""The parts of the page that show what was edited, the figures and their changes; None where there is nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ..figures import FIGURES, HEADINGS, MEANS, TOP1, TOP1_SAFE, explain, label
from ..manifest import Columns, Manifest
from ..weights import TOWERS
from .charts import PERCENT, Row, Scale, dots, heat_map
from .findings import against_reference, roles
from .markup import join, tag
from .parts import beside, by_set, cell, change_cells, figure, folded, grid, legend, section, table
from .tables import edit_words, layer_table

Groups = list[tuple[str, list[str]]]


# ---------------------------------------------------------------- what was edited


def edited(document: Manifest) -> Markup | None:
    if "layers" not in document:
        return None
    layers = document["layers"]
    head, *rows = layer_table(layers)
    body = [(*row, tag("code", layers[row[0]]["base_sha256"])) for row in rows]
    shares = {name: layer["entries"] / layer["of"] for name, layer in layers.items() if layer["kind"] == "scale"}
    towers = sorted({name.partition(".")[0] for name in layers})
    untouched = [tower for tower in TOWERS if tower not in towers]
    about = f"{edit_words(document)}. Every other value is the original's, bit for bit."
    about += "".join(f" Nothing of a {tower} tower was edited." for tower in untouched)
    editor = f"Editor: {document['edit']['title']}. Source: {document['edit']['source']}."
    whole = table((*head, "sha256 before the edit"), body, "Changes by tensor", "numbers")
    charts = _heat_maps(shares) if shares else Markup()
    return section(
        "What was edited",
        "edited",
        tag("p", editor),
        tag("p", about),
        charts,
        _reported(document),
        folded("Table of all tensors", whole),
    )


def _heat_maps(shares: Mapping[str, float]) -> Markup:
    """The scaled share of every matrix, a map a tower."""
    by_tower: dict[str, dict[str, float]] = {}
    for name, share in shares.items():
        by_tower.setdefault(name.partition(".")[0], {})[name] = share
    top = max(shares.values())
    return grid(
        figure(
            heat_map(f"Edited share of each matrix, {tower} tower", _heat_words(cells), cells, top),
            f"{tower.capitalize()} tower: percent of each matrix that was edited",
        )
        for tower, cells in sorted(by_tower.items())
    )


def _reported(document: Manifest) -> Markup | None:
    """What the editor reports by tower, such as the quality of its detector on held-out folds."""
    towers = document["edit"].get("towers", {})
    if not towers:
        return None
    names = list(dict.fromkeys(name for found in towers.values() for name in found))
    body = [(name, *(_number(found.get(name)) for found in towers.values())) for name in names]
    return table(("", *towers), body, "What the editor reports by tower", "numbers")


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)


def _heat_words(cells: Mapping[str, float]) -> str:
    low, high = min(cells, key=cells.__getitem__), max(cells, key=cells.__getitem__)
    return f"{len(cells)} matrices; from {100 * cells[low]:.2f} % ({low}) to {100 * cells[high]:.2f} % ({high})."


# ---------------------------------------------------------------- figures


def measured(document: Manifest) -> Markup | None:
    """Every figure of every column with its interval."""

    def part(name: str, columns: Columns) -> Markup:
        def show(title: str, groups: Groups) -> Markup:
            rows = _rows(groups, lambda f: {c: r["figures"][f] for c, r in columns.items()})
            chart = dots(
                f"{title}, {name}", "Percent with 95 % intervals; numbers in the table.", rows, series, PERCENT
            )
            body = _lines(groups, lambda f: [cell(r["figures"][f]) for r in columns.values()])
            return beside(figure(chart), table(("", *series), body, f"{title}, {name}", "numbers"))

        series = list(columns)
        return join([legend(series), *_both(columns[series[0]]["figures"], show)])

    content = by_set(document, part)
    if content is None:
        nothing = "Nothing was measured: the set has no pairs with both captions and images."
        return section("Figures", "figures", tag("p", nothing))
    control = any("random" in columns for columns in document["results"].values())
    note = " Random: an edit of equal kind and size, drawn at random; what it gains, chance gains." if control else ""
    about = "Percent of pairs, 95 % intervals (bootstrap; exact at 0 and 100); higher is better unless it says lower."
    return section("Figures", "figures", tag("p", about + note), _meanings(document), content)


def _meanings(document: Manifest) -> Markup:
    measured = next(iter(next(iter(document["results"].values())).values()))["figures"]
    names = [name for name in measured if name not in MEANS]
    return folded(
        "What the figures mean",
        tag("dl", *(join([tag("dt", label(n)), tag("dd", f"Share of {explain(n)}.")]) for n in names)),
    )


def _both(names: Iterable[str], show: Callable[[str, Groups], Markup]) -> Iterator[Markup]:
    """The main figures, and folded the rest; means repeat what their parts show and are left out."""
    groups: dict[str, list[str]] = {heading: [] for heading in HEADINGS}
    for name in (name for name in names if name not in MEANS):
        groups.setdefault(FIGURES[name].heading if name in FIGURES else "Other figures", []).append(name)
    found = [(heading, members) for heading, members in groups.items() if members]
    main, deeper = ([group for group in found if (group[0] in HEADINGS) == first] for first in (True, False))
    if main:
        yield show("SafeGround and retrieval", main)
    if deeper:
        yield folded("More figures", show("More figures", deeper))


def _rows(groups: Groups, values: Callable[[str], Mapping[str, Any]]) -> list[Row]:
    return [row for heading, names in groups for row in (Row(heading), *(Row(label(n), values(n)) for n in names))]


def _lines(groups: Groups, cells: Callable[[str], Sequence[object]]) -> list[Sequence[object]]:
    return [line for heading, names in groups for line in ((heading,), *((label(n), *cells(n)) for n in names))]


def changed(document: Manifest) -> Markup | None:
    """Paired differences against the reference, all on one scale."""
    differences = document.get("differences", {})
    against = {
        name: {
            column: {figure: change for figure, change in changes.items() if not figure.startswith((TOP1, TOP1_SAFE))}
            for column, changes in against_reference(columns, differences.get(name, {})).items()
        }
        for name, columns in document["results"].items()
    }
    bounds = [v for found in against.values() for d in found.values() for f in d.values() for v in f["difference"]]
    if not bounds:
        return None
    scale = Scale.around(bounds, "change in points")

    def part(name: str, columns: Columns) -> Markup | None:
        def show(title: str, groups: Groups) -> Markup:
            rows = _rows(groups, lambda f: {c: d[f]["difference"] for c, d in found.items()})
            chart = dots(
                f"Change, {title}, {name}", "Points with 95 % intervals; numbers in the table.", rows, series, scale
            )
            head = ("", *(part for column in found for part in (column, "gained", "lost")))
            body = _lines(groups, lambda f: [part for d in found.values() for part in change_cells(f, d[f])])
            return beside(figure(chart), table(head, body, f"Change, {title}, {name}", "numbers"))

        found, series = against[name], list(columns)
        return join([legend(series, shown=list(found)), *_both(next(iter(found.values())), show)]) if found else None

    reference = roles(list(next(iter(document["results"].values()))))[0]
    about = (
        f"Change against “{reference}”, pair by pair, in points with paired bootstrap 95 % intervals. Bold: the exact "
        "paired test of this one figure gives p ≤ 0.05; of twenty figures without any change about one would be bold. "
        "Gained and lost: pairs that changed sides."
    )
    return section("Paired differences", "changes", tag("p", about), by_set(document, part))
