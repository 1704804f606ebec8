"""A patch from stored scores: the second half of an entry edit."""

from __future__ import annotations

import math

from ...errors import BadInput, InvalidResult
from ..patch import Patch
from .methods import METHODS
from .scoring import Scores
from .selection import RULES, check_share


def select(
    scores: Scores,
    *,
    mass: float | None = None,
    text_mass: float | None = None,
    vision_mass: float | None = None,
    alpha: float | None = None,
    rule: str | None = None,
) -> Patch:
    """A patch from scores: in every weight the entries that the rule picks (UWM, Eq. 11).

    Args:
        scores: From `uwm.score`, or `Scores.load`.
        mass: τ for both towers; `text_mass` and `vision_mass` override it. Default: the method's own, 0.02 for UWM.
        alpha: What the chosen entries are multiplied by. Default: the method's own, −1 for UWM.
        rule: ``top-mass`` or ``top-fraction``. Default: the method's own, top-mass for UWM.

    Raises:
        BadInput: A mass outside of 0–1, an alpha that is not finite, an unknown rule.
        InvalidResult: Nothing would change, or the bound 1 ≤ selected ≤ τN + 1 does not hold.
    """
    if scores.recipe.get("method") not in METHODS:
        raise BadInput(
            f"scores of the unknown method {scores.recipe.get('method')!r}; this uwm has {', '.join(METHODS)}"
        )
    method = METHODS[scores.recipe["method"]]
    alpha = method.alpha if alpha is None else alpha
    check_settings(alpha=alpha, rule=rule, masses=(mass, text_mass, vision_mass))
    both = method.mass if mass is None else mass
    masses = {"text": both if text_mass is None else text_mass, "vision": both if vision_mass is None else vision_mass}
    rules = {tower: rule or method.rules[tower] for tower in masses}
    flips = {}
    for weight, values in scores.items():
        try:
            flips[weight] = RULES[rules[weight.modality]](values, masses[weight.modality])
        except InvalidResult as error:
            raise InvalidResult(f"{weight}: {error}") from None
    towers = sorted({w.modality for w in flips})
    settings = {"rule": {t: rules[t] for t in towers}, "mass": {t: masses[t] for t in towers}}
    return Patch.scaled(
        flips,
        alpha=alpha,
        shapes={weight: (values.shape[0], values.shape[1]) for weight, values in scores.items()},
        base=dict(scores.base),
        recipe={**scores.recipe, **settings},
        casts=dict(scores.casts),
    )


def check_settings(*, alpha: float | None, masses: tuple[float | None, ...], rule: str | None = None) -> None:
    """Refuse settings of `select` that cannot work, before anything is computed; raises as `select`."""
    for mass in masses:
        if mass is not None:
            check_share(mass)
    if rule is not None and rule not in RULES:
        raise BadInput(f"--rule {rule!r}: expected one of {', '.join(RULES)}")
    if alpha is not None and (not math.isfinite(alpha) or abs(alpha) > 1e4):
        raise BadInput(f"--alpha {alpha}: expected a finite number such as -1")
    if alpha == 1:
        raise InvalidResult("--alpha 1 changes nothing")
