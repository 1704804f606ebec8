"""What sections of the page share: cells of figures and of changes, sets, legends, and where a result came from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from ..expressions import Verdict
from ..figures import LEAST_FIRM_PAIRS
from ..gate import headline
from ..manifest import Columns, Manifest
from ..text_tables import interval
from .charts import mark, swatch
from .findings import better
from .pages import Cell, Part, Table
from .tables import points, shared_words

Legend = list[tuple[Element, str]]


def legend(series: Sequence[str], sign: Callable[[int], Element] = mark, shown: Sequence[str] | None = None) -> Legend:
    """The signs of the series; of those `shown` only, where not all are."""
    return [(swatch(sign(n)), name) for n, name in enumerate(series) if shown is None or name in shown]


def gate(found: Sequence[tuple[str, str, bool]]) -> Part | None:
    """Requirements, what was found and whether they are met, those that are not first; None where there are none."""
    if not found:
        return None
    rows = [(name, text.removeprefix("found "), "met" if met else Cell("not met", "loss"))
            for name, text, met in sorted(found, key=lambda one: one[2])]  # fmt: skip
    outcome = headline([Verdict(name, None, met) for name, _, met in found])
    table = Table("Requirements", ("requirement", "found", ""), rows)
    sign = "loss" if outcome.startswith("FAIL") else "gain"
    return Part("gate", "Gate", {"outcome": outcome, "sign": sign, "table": table}, top=True)


def cell(value: Sequence[float]) -> Cell:
    """A mean with its interval."""
    return Cell(interval(value), "interval")


def change_cells(name: str, found: Mapping[str, Any]) -> tuple[object, ...]:
    """The cells of a paired difference, marked where the exact paired test says that it is more than chance."""
    sign = better(name, found)
    text = points(found["difference"]).replace(" points", "")
    return Cell(text, {1: "gain", 0: "interval", -1: "loss"}[sign]), found["gained"], found["lost"]


def by_set(document: Manifest, content: Callable[[str, Columns], Any]) -> list[dict[str, Any]]:
    """What is shown of every evaluation set, with its name; sets without it are left out."""
    made = ((name, columns, content(name, columns)) for name, columns in document["results"].items())
    return [
        {"name": name, "note": _set_note(document, name, columns), "content": found}
        for name, columns, found in made
        if found is not None
    ]


def _set_note(document: Manifest, name: str, columns: Columns) -> str:
    pairs = next(iter(columns.values()))["pairs"]
    few = f"; fewer than {LEAST_FIRM_PAIRS} are too few for firm figures" if pairs < LEAST_FIRM_PAIRS else ""
    shared = f"; {words}" if (words := shared_words(document, name)) else ""
    return f"{pairs} pairs{few}{shared}"


def provenance(document: Mapping[str, Any]) -> Part:
    """What a result came from: settings, versions and hashes."""
    kinds = [
        ("Settings", _lines(document.get("settings", {}))),
        ("Versions", _lines(document.get("versions", {}))),
        ("sha256", _hashes(document)),
    ]
    tables = [Table(title, ("", ""), [(name, Cell(value, "code")) for name, value in rows], "values")
              for title, rows in kinds]  # fmt: skip
    return Part("settings", "Settings, versions, hashes", [table for table in tables if table.body])


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
    for name, digest in document.get("sets_sha256", {}).items():
        yield f"set: {name}", digest
    if of_pairs := document.get("pairs_sha256"):
        yield "pairs", of_pairs
