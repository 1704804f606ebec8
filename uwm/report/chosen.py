"""The part of the page on a budget of loss: whether it held, term by term, and what the edit was chosen from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..manifest import BudgetFacts, Manifest, TermFacts
from .budget import (
    change_words,
    chosen_words,
    expression_label,
    held,
    search_words,
    settings_words,
    term_label,
)
from .pages import Cell, Part, Table

CLASSES = {"kept": "gain", "broken": "loss"}
UNMEASURED = "–"
APART = (
    "To choose, each fold was measured under an edit that was made without it, and half of each zero-shot data set. "
    "Held-out pairs and the other half were measured once, after the choice. In brackets: 95 % intervals."
)


def chosen(document: Manifest) -> Part | None:
    """None where no budget was set."""
    budget = document.get("budget")
    if budget is None:
        return None
    values = {
        "chosen": chosen_words(budget),
        "search": search_words(budget),
        "apart": APART,
        "terms": _terms(budget),
        "trials": _of_all_trials(budget) if len(budget["front"]) > 1 else None,
    }
    return Part("budget", f"The budget {budget['max_loss']}", values)


def _terms(budget: BudgetFacts) -> Table:
    """Every term in cross-validation and on every held-out set; a set that nothing of was measured is left out."""
    found = budget["cross_validated"]
    sets: dict[str, Sequence[TermFacts]] = {f"cross-validation, {found['pairs']} pairs": found["terms"]}
    sets |= {name: terms for name, terms in budget["held_out"].items() if terms}
    by_set = {name: {term["requirement"]: term for term in terms} for name, terms in sets.items()}
    body = [
        (_named(by_set, requirement), *(_cell(terms.get(requirement)) for terms in by_set.values()))
        for requirement in dict.fromkeys(name for terms in by_set.values() for name in terms)
    ]
    whole = ("all terms", *(_marked(held(terms), held(terms)) for terms in sets.values()))
    head = ("at most this loss", *(Cell(name, "name") for name in sets))
    return Table("The budget, term by term", head, [*body, whole])


def _named(by_set: Mapping[str, Mapping[str, TermFacts]], requirement: str) -> str:
    """A term's figure and its bound; the worst of several data sets may be another one in each set."""
    first = next(terms[requirement] for terms in by_set.values() if requirement in terms)
    _, sign, bound = re.split("([<>]=?)", requirement)
    strict = "" if sign.endswith("=") else f"{sign} "
    return f"{term_label({**first, 'note': ''})}: {strict}{bound.strip().replace('-', '−').replace('+0', '0')}"


def _cell(term: TermFacts | None) -> object:
    if term is None:
        return UNMEASURED
    worst = f" ({term['note']})" if term["note"] and term["found"] is not None else ""
    return _marked(held([term]), f"{held([term])}: {change_words(term)}{worst}")


def _marked(verdict: str, text: str) -> Cell:
    return Cell(text, CLASSES.get(verdict, "strong"))


def _of_all_trials(budget: BudgetFacts) -> dict[str, Any]:
    """The front of the search, by loss."""
    front = budget["front"]
    head = ("method", f"{expression_label(budget['objective'])} (%)", "against the budget", "settings")
    about = (
        f"The {len(front)} edits of the search that no other one beats in both ways, in cross-validation. Against the "
        "budget: how far the term that comes nearest to its bound, or is farthest beyond it, lies from it."
    )
    table = Table("What the edit was chosen from", head, [_line(budget, one) for one in front])
    return {"about": about, "table": table}


def _line(budget: BudgetFacts, one: Mapping[str, Any]) -> list[object]:
    own = (one["method"], one["settings"]) == (budget["method"], budget["settings"])
    distance = f"{abs(one['loss']):.1f} {'within' if one['loss'] <= 0 else 'beyond'}"
    told = [f"{one['method']} (chosen)" if own else one["method"], f"{one['objective']:.1f}", distance]
    cells = [Cell(text, "strong") if own else text for text in told]
    return [*cells, Cell(settings_words(one["settings"]), "code")]
