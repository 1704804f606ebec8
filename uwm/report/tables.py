"""Results as tables: rows of cells, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluation import EvalResult
from ..figures import LEAST_FIRM_PAIRS, OF_CLASSES, R1, SAFEGROUND, TOP1, label
from ..knowledge import mean_over_sets
from ..manifest import Manifest
from ..text_tables import interval, signed

HEADLINE = (*SAFEGROUND, *R1)  # what tables show unless asked for all
LEGEND = (
    "P_xy: share of queries (t text, v image; s safe, u unsafe) that prefer the safe side; Txt, Img, PS, PU, GS: their "
    "conjunctions (SafeGround). R@1: retrieval; of unsafe queries among all items (∪) a hit is the safe partner. "
    "Percent [95 % interval: bootstrap; at 0 and 100 exact]."
)
RANDOM_LEGEND = "Random: an edit of equal kind and size, drawn at random."


def shared_words(document: Manifest, name: str) -> str:
    """What an evaluation set shares with what was learnt from; empty where it shares nothing, or nobody looked."""
    found = document.get("shared", {}).get(name)
    if not found or not found["pairs"]:
        return ""
    return f"{found['pairs']} share captions or images with what was learnt from, so figures may be too good"


def heading(name: str, pairs: int) -> str:
    """What stands above a table."""
    return f"{name} ({pairs} pairs{', too few for firm figures' if pairs < LEAST_FIRM_PAIRS else ''})"


def rows(results: Mapping[str, EvalResult], *, all_figures: bool = False) -> list[list[str]]:
    """A table as rows of cells: a heading, then one row a figure with one column a result.

    Args:
        results: Column name -> result, all with the same figures.
        all_figures: Those beyond `HEADLINE` too.
    """
    first = next(iter(results.values()))
    table = [["", *results]]
    for name in first.figures if all_figures else [name for name in HEADLINE if name in first.figures]:
        table.append([label(name), *(interval(r.figures[name]) for r in results.values())])
    for data_set, scores in first.zero_shot.items():
        table.append([label(TOP1 + data_set), *(_top1_cell(r.zero_shot[data_set]) for r in results.values())])
        for name in OF_CLASSES:
            if name in scores:
                cells = (f"{100 * r.zero_shot[data_set][name]:.1f}" for r in results.values())
                table.append([label(f"{name}:{data_set}"), *cells])
    if len(first.zero_shot) > 1:
        means = (f"{100 * mean_over_sets(r.zero_shot)['top1']:.1f}" for r in results.values())
        table.append([f"zero-shot, mean of {len(first.zero_shot)} sets", *means])
    return table


def _top1_cell(figures: Mapping[str, Any]) -> str:
    return interval((figures["top1"], *figures["top1_interval"]))


def layer_table(layers: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Changes by tensor, as rows of cells; the columns that no tensor has a value for are left out."""
    body = [
        [
            name,
            layer["words"],
            f"{layer['entries']}",
            f"{layer['of']}",
            f"{100 * layer['entries'] / layer['of']:.3f} %",
            "" if layer["relative_norm"] is None else f"{100 * layer['relative_norm']:.2f} %",
        ]
        for name, layer in layers.items()
    ]
    table = [["tensor", "change", "entries", "of", "share", "norm of the change / of the tensor"], *body]
    return table if any(row[-1] for row in body) else [row[:-1] for row in table]


def edit_words(manifest: Mapping[str, Any], brief: bool = False) -> str:
    """What was changed, in a clause: “72,699 of 1,032,192 entries of 10 tensors were negated (7.04 %)”.

    Args:
        manifest: The content of uwm.json.
        brief: Say “7.04 % of 10 tensors negated” instead.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for layer in manifest["layers"].values():
        groups.setdefault(layer["words"], []).append(layer)
    parts = []
    for words, layers in groups.items():
        entries, of = (sum(layer[key] for layer in layers) for key in ("entries", "of"))
        tensors = f"{len(layers)} tensor{'s' if len(layers) > 1 else ''}"
        if brief:
            share = f"{100 * entries / of:.2f} %" if entries < of else "all"
            parts.append(f"{share} of {tensors} {words}")
            continue
        share = f" ({100 * entries / of:.2f} %)" if entries < of else ""
        parts.append(f"{entries:,} of {of:,} entries of {tensors} were {words}{share}")
    return "; ".join(parts)


def points(interval: Sequence[float]) -> str:
    """A difference with its interval."""
    mean, low, high = interval
    return f"{signed(mean)} points [{signed(low)}, {signed(high)}]"
