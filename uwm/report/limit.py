"""What is said of a limit of loss: how the edit was chosen within it, and whether it held on held-out pairs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..figures import label
from ..manifest import LimitFacts, TermFacts
from ..text_tables import signed

KEPT, MISSED, BROKEN = "kept", "missed, by less than these pairs can tell", "broken"


def limit_lines(limit: LimitFacts | None) -> list[str]:
    """A line for every held-out set, and one for how the edit was chosen; none where no limit was set."""
    if limit is None:
        return []
    lines = [
        f"Limit {limit['max_loss']} on {name}: {held(terms)} ({'; '.join(map(term_words, terms))})."
        for name, terms in limit["held_out"].items()
        if terms
    ]
    found = limit["cross_validated"]
    of = ", ".join(f"{count} {method}" for method, count in limit["trials"].items())
    return [
        *lines,
        f"Chosen among {sum(limit['trials'].values())} edits ({of}) by cross-validation in {found['folds']} folds of "
        f"{found['pairs']} pairs: {limit['objective']} {found['before']:.1f} → {found['after']:.1f} % "
        f"({'; '.join(map(term_words, found['terms']))}).",
    ]


def held(terms: Sequence[TermFacts] | Sequence[Mapping[str, Any]]) -> str:
    """Whether a limit held: kept; missed, the interval of every term that was reaching the limit; or broken."""
    missed = [term for term in terms if not term["met"]]
    if not missed:
        return KEPT
    return MISSED if all(_within_interval(term) for term in missed) else BROKEN


def _within_interval(term: Mapping[str, Any]) -> bool:
    """Whether the 95 % interval of a term that was missed reaches the limit."""
    if term["interval"] is None:
        return False
    low, high = term["interval"]
    short = -term["margin"]
    return high - term["found"] >= short if ">=" in term["requirement"] else term["found"] - low >= short


def term_words(term: Mapping[str, Any]) -> str:
    """``R@1 Ts→Vs −1.4 % [−3.1, 0.3]``."""
    requirement = term["requirement"]
    expression = re.split("[<>]=", requirement)[0].strip()
    unit = "pt" if requirement.rstrip().endswith("pt") else "%"
    name, _, of = expression.partition(":")
    worst = term["note"].rpartition(" ")[2] if of == "*" else of
    told = f"{label(name)} ({worst})" if worst else label(name)
    between = "" if term["interval"] is None else " [{}, {}]".format(*(signed(end / 100) for end in term["interval"]))
    return f"{told} {signed(term['found'] / 100)} {unit}{between}"
