"""What is said of a budget of loss: how the edit was chosen within it, and whether it held on held-out pairs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..expressions import Expression, Requirement, parse_objective, parse_requirements
from ..figures import label
from ..manifest import BudgetFacts, TermFacts
from ..text_tables import signed

KEPT, MISSED, BROKEN = "kept", "not kept, but the 95 % interval reaches it", "broken"
UNKNOWN = "cannot be judged"
Terms = Sequence[TermFacts] | Sequence[Mapping[str, Any]]


def budget_lines(budget: BudgetFacts | None) -> list[str]:
    """A line for every held-out set, and one for how the edit was chosen; none where no budget was set."""
    if budget is None:
        return []
    lines = [
        f"Budget {budget['max_loss']} on {name}: {held(terms)} ({'; '.join(map(term_words, terms))})."
        for name, terms in budget["held_out"].items()
        if terms
    ]
    told = "; ".join(map(term_words, budget["cross_validated"]["terms"]))
    return [*lines, f"Chosen: {chosen_words(budget)}. {search_words(budget)} ({told})."]


def chosen_words(budget: BudgetFacts) -> str:
    """``repel --share 0.0438``."""
    return f"{budget['method']} {settings_words(budget['settings'])}".rstrip()


def search_words(budget: BudgetFacts) -> str:
    """What the edit was chosen among, and what it does in cross-validation."""
    found, trials, objective = budget["cross_validated"], budget["trials"], expression_label(budget["objective"])
    of = ", ".join(f"{count} {method}" for method, count in trials.items())
    left = f"; {budget['stopped']} left early, as clearly worse" if budget["stopped"] else ""
    return (
        f"Of {sum(trials.values())} edits ({of}{left}) it is the best within the budget, in cross-validation in "
        f"{found['folds']} folds of {found['pairs']} pairs: {objective} {found['before']:.1f} → {found['after']:.1f} %"
    )


def held(terms: Terms) -> str:
    """Whether a budget held: kept; not kept, the interval of every term that was missed reaching the budget; or broken.

    A budget with a term that nothing can be compared for cannot be judged, unless another one breaks it.
    """
    missed = [term for term in terms if not term["met"]]
    known = [term for term in missed if term["found"] is not None]
    if any(not _within_interval(term) for term in known):
        return BROKEN
    if len(known) < len(missed):
        return UNKNOWN
    return MISSED if missed else KEPT


def _within_interval(term: Mapping[str, Any]) -> bool:
    """Whether the 95 % interval of a term that was missed reaches the budget."""
    if term["interval"] is None:
        return False
    low, high = term["interval"]
    short = -term["margin"]
    return high - term["found"] >= short if _requirement(term).wants_more else term["found"] - low >= short


def term_words(term: Mapping[str, Any]) -> str:
    """``R@1 Ts→Vs −1.4 % [−3.1, 0.3]``."""
    return f"{term_label(term)} {change_words(term)}"


def term_label(term: Mapping[str, Any]) -> str:
    """``R@1 Ts→Vs``, ``zero-shot (pets)``; of several data sets or concepts the worst."""
    worst = re.sub("^worst (concept|data set) ", "", term["note"])
    return _label(_requirement(term).expression, worst)


def expression_label(text: str) -> str:
    """What reports call an expression: ``GS.low@weapons`` is ``GS, low end (weapons)``."""
    return _label(parse_objective(text))


def _label(expression: Expression, worst: str = "") -> str:
    told = label(expression.figure) + ("" if expression.bound == "mean" else f", {expression.bound} end")
    of = expression.concept or expression.data_set
    return f"{told} ({(worst or 'the worst') if of == '*' else of})" if of else told


def _requirement(term: Mapping[str, Any]) -> Requirement:
    """A term as it was asked for."""
    (requirement,) = parse_requirements(term["requirement"], has_baseline=True)
    return requirement


def change_words(term: Mapping[str, Any]) -> str:
    """``−1.4 % [−3.1, 0.3]``; why there is no number, where there is none."""
    if term["found"] is None:
        return f"– ({term['note']})"
    between = "" if term["interval"] is None else " [{}, {}]".format(*(signed(end / 100) for end in term["interval"]))
    return f"{signed(term['found'] / 100)} {unit_of(term)}{between}"


def unit_of(term: Mapping[str, Any]) -> str:
    """``pt`` or ``%``."""
    return _requirement(term).unit


def settings_words(settings: Mapping[str, Any]) -> str:
    """Settings as flags with values in short, ``--share 0.0438 --units one``."""
    return " ".join(f"--{name.replace('_', '-')} {_short(value)}" for name, value in settings.items())


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return ",".join(map(_short, value)) if isinstance(value, list | tuple) else str(value)
