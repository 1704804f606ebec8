"""The verdict in three lines: what became of safety, of zero-shot accuracy, and what it cost. All of it computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..figures import MEANS, accuracy_of
from ..knowledge import mean_over_sets
from ..manifest import Columns, Manifest
from ..text_tables import percent
from .budget import budget_lines
from .findings import LEAST_FIRM_PAIRS, certain, findings, roles
from .tables import edit_words

SHOWN = ("GS", "PU")
CHECKED_BESIDE = ("PU", "PS", "R1_ts_vs")  # a better method is safer by the first, and no worse by the others


def verdict_lines(manifest: Manifest, timed: bool = False) -> list[str]:
    """Safety, zero-shot accuracy and cost of an edit on its first evaluation set, and a better method if there is one.

    Args:
        manifest: The content of uwm.json; without results there is nothing to say.
        timed: Say how long the edit took, which differs from run to run.
    """
    for name, columns in manifest.get("results", {}).items():
        differences = manifest["differences"][name]
        judged = findings(columns, differences)
        lines = [
            f"Safety: {judged.verdict.partition(';')[0]} ({_safety(columns)}).",
            f"Zero-shot accuracy: {_zero_shot(columns)}.",
            f"Cost: {_cost(manifest, columns, timed)}.",
        ]
        return [*lines, *budget_lines(manifest.get("budget")), *_better_methods(columns, differences)]
    return budget_lines(manifest.get("budget"))


def _of(columns: Columns) -> tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any] | None]:
    """The results of the reference, of the judged column, and of the random control."""
    reference, judged, control = roles(list(columns))
    return columns[reference or judged], columns[judged], None if control is None else columns[control]


def _mean(result: Mapping[str, Any], name: str) -> float:
    """A figure, or the mean of the two directions of one such as ``unsafe_top1``."""
    parts = MEANS.get(name, (name,))
    return sum(result["figures"][part][0] for part in parts) / len(parts)


def _step(before: float, after: float) -> str:
    return f"{percent(before)} → {percent(after)} %"


def _safety(columns: Columns) -> str:
    before, after, control = _of(columns)
    parts = []
    for name in SHOWN:
        chance = "" if control is None else f", random {percent(_mean(control, name))}"
        parts.append(f"{name} {_step(_mean(before, name), _mean(after, name))}{chance}")
    still = _step(_mean(before, "unsafe_top1"), _mean(after, "unsafe_top1"))
    return "; ".join([*parts, f"unsafe queries whose first result is unsafe {still}"])


def _zero_shot(columns: Columns) -> str:
    """By data set; where a set has unsafe classes, of its safe and of its unsafe ones, whose fall is wanted."""
    before, after, control = _of(columns)
    parts = []
    for name, figures in before["zero_shot"].items():
        kinds = ("top1_safe", "top1_unsafe") if "top1_safe" in figures else ("top1",)
        words = {"top1": "", "top1_safe": "safe classes ", "top1_unsafe": "unsafe classes "}
        told = ", ".join(f"{words[k]}{_step(figures[k], after['zero_shot'][name][k])}" for k in kinds)
        chance = "" if control is None else f", random {percent(control['zero_shot'][name][kinds[0]])}"
        parts.append(f"{name} {told}{chance}")
    if len(parts) > 4:
        means = [mean_over_sets(result["zero_shot"])["top1"] for result in (before, after)]
        return f"mean of {len(parts)} data sets {_step(*means)}"
    return "; ".join(parts) if parts else "not measured; see --zero-shot"


def _cost(manifest: Manifest, columns: Columns, timed: bool) -> str:
    before, after, _ = _of(columns)
    recall = _step(_mean(before, "R1_safe"), _mean(after, "R1_safe"))
    seconds = manifest.get("run", {}).get("seconds", {})
    took = f"; {seconds['edit']:.0f} s" if timed and "edit" in seconds else ""
    took += f" and {seconds['choose']:.0f} s to choose it" if took and "choose" in seconds else ""
    return f"safe R@1 {recall}; {edit_words(manifest)}{took}"


def _better_methods(columns: Columns, differences: Any) -> list[str]:
    """A line for each method beside the edit that is safer for certain and costs no more that these pairs can tell."""
    _, judged, control = roles(list(columns))
    enough = columns[judged]["pairs"] >= LEAST_FIRM_PAIRS
    others = [name for name in [*columns][3:] if name in differences[judged]] if control and enough else []
    against = {f"{other}:{name}": differences[judged][other][name] for other in others for name in CHECKED_BESIDE}
    signs = certain(against, against)  # of the judged against each other one
    lines = []
    for other in others:
        safe_zero_shot = _safe_accuracy(columns[other]) >= _safe_accuracy(columns[judged])
        safer, *cost = (-signs[f"{other}:{name}"] for name in CHECKED_BESIDE)
        if safer == 1 and safe_zero_shot and min(cost) >= 0:
            values = {n: [percent(_mean(columns[c], n)) for c in (other, judged)] for n in SHOWN}
            gains = ", ".join(f"{name} {theirs} instead of {ours} %" for name, (theirs, ours) in values.items())
            lines.append(f"Better on these pairs: --method {other} ({gains}; safe zero-shot accuracy no lower).")
    return lines


def _safe_accuracy(result: Mapping[str, Any]) -> float:
    """Mean over data sets of zero-shot accuracy, of safe classes where a set names unsafe ones; 0 where unmeasured."""
    values = [figures[accuracy_of(figures)] for figures in result["zero_shot"].values()]
    return sum(values) / len(values) if values else 0.0
