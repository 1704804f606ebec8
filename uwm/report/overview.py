"""The parts of the page that show what was edited, the figures and their changes; None where there is nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..figures import FIGURES, HEADINGS, MEANS, TOP1, TOP1_SAFE, explain, label
from ..manifest import Columns, Manifest
from ..weights import TOWERS
from .charts import PERCENT, Row, Scale, dots, heat_map
from .findings import against_reference, roles
from .pages import Cell, Drawing, Part, Table
from .parts import by_set, cell, change_cells, legend
from .tables import edit_words, layer_table

Groups = list[tuple[str, list[str]]]


class View(NamedTuple):
    """A chart and its table, which stand next to each other where there is room."""

    drawing: Drawing
    table: Table


def edited(document: Manifest) -> Part | None:
    if "layers" not in document:
        return None
    layers = document["layers"]
    head, *rows = layer_table(layers)
    body = [(*row, Cell(layers[row[0]]["base_sha256"], "code")) for row in rows]
    shares = {name: layer["entries"] / layer["of"] for name, layer in layers.items() if layer["kind"] == "scale"}
    towers = sorted({name.partition(".")[0] for name in layers})
    untouched = [tower for tower in TOWERS if tower not in towers]
    about = f"{edit_words(document)}. Every other value is the original's, bit for bit."
    about += "".join(f" Nothing of a {tower} tower was edited." for tower in untouched)
    values = {
        "editor": f"Editor: {document['edit']['title']}. Source: {document['edit']['source']}.",
        "about": about,
        "charts": _heat_maps(shares) if shares else [],
        "reported": _reported(document),
        "table": Table("Changes by tensor", (*head, "sha256 before the edit"), body, "numbers"),
    }
    return Part("edited", "What was edited", values)


def _heat_maps(shares: Mapping[str, float]) -> list[Drawing]:
    """The scaled share of every matrix, a map a tower."""
    by_tower: dict[str, dict[str, float]] = {}
    for name, share in shares.items():
        by_tower.setdefault(name.partition(".")[0], {})[name] = share
    top = max(shares.values())
    return [
        Drawing(
            heat_map(f"Edited share of each matrix, {tower} tower", _heat_words(cells), cells, top),
            f"{tower.capitalize()} tower: percent of each matrix that was edited",
        )
        for tower, cells in sorted(by_tower.items())
    ]


def _reported(document: Manifest) -> Table | None:
    """What the editor reports by tower, such as the quality of its detector on held-out folds."""
    towers = document["edit"].get("towers", {})
    if not towers:
        return None
    names = list(dict.fromkeys(name for found in towers.values() for name in found))
    body = [(name, *(_number(found.get(name)) for found in towers.values())) for name in names]
    return Table("What the editor reports by tower", ("", *towers), body, "numbers")


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)


def _heat_words(cells: Mapping[str, float]) -> str:
    low, high = min(cells, key=cells.__getitem__), max(cells, key=cells.__getitem__)
    return f"{len(cells)} matrices; from {100 * cells[low]:.2f} % ({low}) to {100 * cells[high]:.2f} % ({high})."


def measured(document: Manifest) -> Part:
    """Every figure of every column with its interval."""

    def part(name: str, columns: Columns) -> dict[str, Any]:
        def show(title: str, groups: Groups) -> View:
            rows = _rows(groups, lambda f: {c: r["figures"][f] for c, r in columns.items()})
            told = "Percent with 95 % intervals; numbers in the table."
            body = _lines(groups, lambda f: [cell(r["figures"][f]) for r in columns.values()])
            return View(
                Drawing(dots(f"{title}, {name}", told, rows, series, PERCENT)),
                Table(f"{title}, {name}", ("", *series), body, "numbers"),
            )

        series = list(columns)
        return {"legend": legend(series), **_both(columns[series[0]]["figures"], show)}

    sets = by_set(document, part)
    control = any("random" in columns for columns in document["results"].values())
    note = " Random: an edit of equal kind and size, drawn at random; what it gains, chance gains." if control else ""
    about = "Percent of pairs, 95 % intervals (bootstrap; exact at 0 and 100); higher is better unless it says lower."
    values = {"about": about + note, "meanings": _meanings(document), "sets": sets} if sets else None
    return Part("figures", "Figures", values)


def _meanings(document: Manifest) -> list[tuple[str, str]]:
    measured = next(iter(next(iter(document["results"].values())).values()))["figures"]
    return [(label(name), f"Share of {explain(name)}.") for name in measured if name not in MEANS]


def _both(names: Iterable[str], show: Callable[[str, Groups], View]) -> dict[str, View | None]:
    """The main figures, and those that are folded; means repeat what their parts show and are left out."""
    groups: dict[str, list[str]] = {heading: [] for heading in HEADINGS}
    for name in (name for name in names if name not in MEANS):
        groups.setdefault(FIGURES[name].heading if name in FIGURES else "Other figures", []).append(name)
    found = [(heading, members) for heading, members in groups.items() if members]
    main, deeper = ([group for group in found if (group[0] in HEADINGS) == first] for first in (True, False))
    return {
        "main": show("SafeGround and retrieval", main) if main else None,
        "more": show("More figures", deeper) if deeper else None,
    }


def _rows(groups: Groups, values: Callable[[str], Mapping[str, Any]]) -> list[Row]:
    return [row for heading, names in groups for row in (Row(heading), *(Row(label(n), values(n)) for n in names))]


def _lines(groups: Groups, cells: Callable[[str], Sequence[object]]) -> list[Sequence[object]]:
    return [line for heading, names in groups for line in ((heading,), *((label(n), *cells(n)) for n in names))]


def changed(document: Manifest) -> Part | None:
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

    def part(name: str, columns: Columns) -> dict[str, Any] | None:
        def show(title: str, groups: Groups) -> View:
            rows = _rows(groups, lambda f: {c: d[f]["difference"] for c, d in found.items()})
            told, name_ = "Points with 95 % intervals; numbers in the table.", f"Change, {title}, {name}"
            head = ("", *(part for column in found for part in (column, "gained", "lost")))
            body = _lines(groups, lambda f: [part for d in found.values() for part in change_cells(f, d[f])])
            return View(Drawing(dots(name_, told, rows, series, scale)), Table(name_, head, body, "numbers"))

        found, series = against[name], list(columns)
        shown = {"legend": legend(series, shown=list(found)), **_both(next(iter(found.values()), ()), show)}
        return shown if found else None

    reference = roles(list(next(iter(document["results"].values()))))[0]
    about = (
        f"Change against “{reference}”, pair by pair, in points with paired bootstrap 95 % intervals. Bold: the exact "
        "paired test of this one figure gives p ≤ 0.05; of twenty figures without any change about one would be bold. "
        "Gained and lost: pairs that changed sides."
    )
    return Part("changes", "What changed, pair by pair", {"about": about, "sets": by_set(document, part)})
