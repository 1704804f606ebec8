"""The part of the page on a budget of loss: whether it held, term by term, and what the edit was chosen from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

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
from .markup import join, tag
from .parts import folded, section, table

CLASSES = {"kept": "gain", "broken": "loss"}
UNMEASURED = "–"


def chosen(document: Manifest) -> Markup | None:
    """None where no budget was set."""
    budget = document.get("budget")
    if budget is None:
        return None
    about = tag("p", "Chosen: ", tag("code", chosen_words(budget)), f". {search_words(budget)}.")
    apart = (
        "To choose, each fold was measured under an edit that was made without it, and half of each zero-shot data "
        "set. Held-out pairs and the other half were measured once, after the choice. In brackets: 95 % intervals."
    )
    parts = [about, tag("p", apart), _terms(budget), *_of_all_trials(budget)]
    return section(f"The budget {budget['max_loss']}", "budget", *parts)


def _terms(budget: BudgetFacts) -> Markup:
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
    return table(
        ("at most this loss", *(tag("bdi", name) for name in sets)), [*body, whole], "The budget, term by term"
    )


def _named(by_set: Mapping[str, Mapping[str, TermFacts]], requirement: str) -> str:
    """A term's figure and its bound; the worst of several data sets may be another one in each set."""
    first = next(terms[requirement] for terms in by_set.values() if requirement in terms)
    _, sign, bound = re.split("([<>]=?)", requirement)
    strict = "" if sign.endswith("=") else f"{sign} "
    return f"{term_label({**first, 'note': ''})}: {strict}{bound.strip().replace('-', '−').replace('+0', '0')}"


def _cell(term: TermFacts | None) -> object:
    if term is None:
        return UNMEASURED
    verdict = held([term])
    return join([change_words(term), *_worst(term), " ", _marked(verdict, verdict)])


def _worst(term: TermFacts) -> Iterator[str]:
    if term["note"] and term["found"] is not None:
        yield f" ({term['note']})"


def _marked(verdict: str, text: str) -> Markup:
    return tag("strong", text, class_=CLASSES.get(verdict))


def _of_all_trials(budget: BudgetFacts) -> Iterator[Markup]:
    """The front of the search, by loss."""
    front = budget["front"]
    if len(front) < 2:
        return
    head = ("method", f"{expression_label(budget['objective'])} (%)", "against the budget", "settings")
    body = [_line(budget, one) for one in front]
    about = (
        f"The {len(front)} edits of the search that no other one beats in both ways, in cross-validation. Against the "
        "budget: how far the term that comes nearest to its bound, or is farthest beyond it, lies from it."
    )
    shown = table(head, body, "What the edit was chosen from")
    yield folded("What the edit was chosen from", tag("p", about), shown)


def _line(budget: BudgetFacts, one: Mapping[str, Any]) -> list[object]:
    own = (one["method"], one["settings"]) == (budget["method"], budget["settings"])
    distance = f"{abs(one['loss']):.1f} {'within' if one['loss'] <= 0 else 'beyond'}"
    told = [f"{one['method']} (chosen)" if own else one["method"], f"{one['objective']:.1f}", distance]
    return [
        *(tag("strong", text) if own else text for text in told),
        tag("code", settings_words(one["settings"])),
    ]
