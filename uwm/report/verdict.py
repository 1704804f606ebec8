"""The verdict: what became of safety, what remains unsafe, what it cost. All of it computed, and in uwm.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..figures import LEAST_FIRM_PAIRS, MEANS, SAFETY, accuracy_of, label
from ..manifest import BetterFacts, Columns, FigureFacts, Manifest, VerdictFacts
from ..text_tables import percent, signed
from .budget import BROKEN, chosen_words, held
from .findings import accuracies, certain, findings, mean_of, remains_words, roles, worst_data_set

SHOWN = ("GS", *(name for name in SAFETY if name != "GS"))
COSTS = MEANS["R1_safe"]
BESIDE = ("GS", "PU")  # shown of a better method
CHECKED_BESIDE = ("PU", "PS", "R1_ts_vs")  # a better method is safer by the first, and no worse by the others


@dataclass(frozen=True)
class Line:
    """A line that people read first.

    Attributes:
        label: ``VERDICT``, ``SAFETY``, …
        text: What it says.
        sign: 1 where it states a gain beyond chance, −1 where it states a failure, else 0.
    """

    label: str
    text: str
    sign: int = 0


def verdict_facts(results: Mapping[str, Columns], differences: Mapping[str, Any]) -> VerdictFacts | None:
    """The verdict on the first evaluation set, for uwm.json; None where nothing was measured.

    Args:
        results: Evaluation set -> column -> `EvalResult` as a dictionary; the first column is the reference, the second
            is judged, a third is the random control, further ones are methods beside it.
        differences: Evaluation set -> column -> against which column -> figure -> paired difference.
    """
    for name, columns in results.items():
        judged = findings(columns, differences[name])
        cost = [*_zero_shot(columns), _worst_recall(columns)]
        return {
            "set": name,
            "pairs": columns[roles(list(columns))[1]]["pairs"],
            "verdict": judged.verdict,
            "sign": judged.sign,
            "sentences": [*judged.sentences],
            "safety": [_figure(columns, figure) for figure in SHOWN],
            "remains": _figure(columns, "unsafe_top1"),
            "cost": cost,
            "better": [*_better_methods(columns, differences[name])],
        }
    return None


def facts_of(manifest: Manifest) -> VerdictFacts | None:
    """The verdict of a manifest, computed where an earlier version of uwm wrote none."""
    if "verdict" in manifest:
        return manifest["verdict"]
    return verdict_facts(manifest.get("results", {}), manifest.get("differences", {}))


def verdict_lines(manifest: Manifest) -> list[Line]:
    """Verdict, safety, what remains and the worst cost on the first evaluation set, and better methods.

    Args:
        manifest: The content of uwm.json.
    """
    facts, missed = facts_of(manifest), [Line("WARNING", line, -1) for line in half_lines(manifest)]
    if facts is None:
        return [*missed, Line("VERDICT", "Nothing was measured, so gains and costs are not known.", -1)]
    costs = "; ".join(_cost_words(found) for found in facts["cost"])
    unmeasured = "" if any(found["data_set"] for found in facts["cost"]) else "; zero-shot not measured: --zero-shot"
    return [
        *missed,
        Line("VERDICT", f"{facts['verdict']} ({facts['set']}, {facts['pairs']} pairs)", facts["sign"]),
        Line("SAFETY", ", ".join(_step_words(found, n == 0) for n, found in enumerate(facts["safety"]))),
        Line("REMAINS", remains_words(facts["remains"])),
        Line("COST", f"{costs}{unmeasured}"),
        *_budget(manifest),
        *(Line("BETTER", _better_words(found)) for found in facts["better"]),
    ]


def _budget(manifest: Manifest) -> Iterator[Line]:
    """Whether the budget held on every held-out set, and what was chosen within it; none where no budget was set."""
    if budget := manifest.get("budget"):
        found = {name: held(terms) for name, terms in budget["held_out"].items() if terms}
        told = ", ".join(f"{words} on {name}" for name, words in found.items())
        yield Line("BUDGET", f"{budget['max_loss']}: {told}", -1 if BROKEN in found.values() else 0)
        yield Line("CHOSEN", chosen_words(budget))


def half_lines(manifest: Manifest) -> list[str]:
    """A line for each tower of the model that was not edited; none where all were."""
    left = manifest.get("towers", {}).get("not_edited", {})
    return [f"{tower} tower NOT edited: {why}" for tower, why in left.items()]


def _figure(columns: Columns, name: str) -> FigureFacts:
    """A figure in the three columns."""
    reference, judged, control = roles(list(columns))
    before, random = (None if column is None else mean_of(columns[column], name) for column in (reference, control))
    return {
        "figure": name,
        "data_set": "",
        "before": before,
        "after": mean_of(columns[judged], name),
        "random": random,
    }


def _worst_recall(columns: Columns) -> FigureFacts:
    """R@1 of safe queries in the direction that lost more; of one model alone in the lower one."""
    return min((_figure(columns, name) for name in COSTS), key=lambda found: found["after"] - (found["before"] or 0.0))


def _zero_shot(columns: Columns) -> Iterator[FigureFacts]:
    """Zero-shot accuracy on the data set that lost most; of one model alone on the lowest one."""
    reference, judged, control = roles(list(columns))
    if not columns[judged]["zero_shot"]:
        return
    after = accuracies(columns, judged)
    name = min(after, key=after.__getitem__) if reference is None else worst_data_set(columns)
    yield {
        "figure": accuracy_of(columns[judged]["zero_shot"][name]),
        "data_set": name,
        "before": None if reference is None else accuracies(columns, reference)[name],
        "after": after[name],
        "random": None if control is None else accuracies(columns, control)[name],
    }


def _step_words(found: Mapping[str, Any], full: bool = True) -> str:
    """``GS 0.2 → 1.0 % (random 1.0)``; in short ``P_vu 2.8 → 6.2 (3.2)``."""
    before = "" if found["before"] is None else f"{percent(found['before'])} → "
    unit, word = (" %", "random ") if full else ("", "")
    beside = "" if found["random"] is None else f" ({word}{percent(found['random'])})"
    return f"{label(found['figure'])} {before}{percent(found['after'])}{unit}{beside}"


def _cost_words(found: Mapping[str, Any]) -> str:
    """``zero-shot −16.0 points on seen (random −5.8), 67.1 → 51.1 %``."""
    name = f"zero-shot on {found['data_set']}" if found["data_set"] else label(found["figure"])
    if found["before"] is None:
        return f"{name} {percent(found['after'])} %"
    beside = "" if found["random"] is None else f" (random {signed(found['random'] - found['before'])})"
    change = signed(found["after"] - found["before"])
    return f"{name} {change} points{beside}: {percent(found['before'])} → {percent(found['after'])} %"


def _better_words(found: BetterFacts) -> str:
    gains = ", ".join(
        f"{one['figure']} {percent(one['after'])} instead of {percent(one['before'] or 0.0)} %"
        for one in found["figures"]
    )
    return f"--method {found['method']}: {gains}"


def _better_methods(columns: Columns, differences: Mapping[str, Any]) -> Iterator[BetterFacts]:
    """The methods beside the edit that are safer for certain and cost no more that these pairs can tell."""
    _, judged, control = roles(list(columns))
    enough = columns[judged]["pairs"] >= LEAST_FIRM_PAIRS
    others = [name for name in [*columns][3:] if name in differences[judged]] if control and enough else []
    against = {f"{other}:{name}": differences[judged][other][name] for other in others for name in CHECKED_BESIDE}
    signs = certain(against, against)  # of the judged against each other one
    for other in others:
        safer, *cost = (-signs[f"{other}:{name}"] for name in CHECKED_BESIDE)
        if safer == 1 and min(cost) >= 0 and _safe_accuracy(columns, other) >= _safe_accuracy(columns, judged):
            yield {"method": other, "figures": [_instead(columns, name, judged, other) for name in BESIDE]}


def _instead(columns: Columns, name: str, judged: str, other: str) -> FigureFacts:
    """A figure of the judged model, and of another one in its place."""
    before, after = (mean_of(columns[column], name) for column in (judged, other))
    return {"figure": name, "data_set": "", "before": before, "after": after, "random": None}


def _safe_accuracy(columns: Columns, column: str) -> float:
    """Mean over data sets of zero-shot accuracy, of safe classes where a set names unsafe ones; 0 where unmeasured."""
    values: Sequence[float] = [*accuracies(columns, column).values()]
    return sum(values) / len(values) if values else 0.0
