"""A patch from stored scores: the second half of an entry edit."""

from __future__ import annotations

from typing import Any

from ...errors import BadInput, InvalidResult
from ...weights import WeightId
from .. import settings
from ..changes import Scale
from ..patch import Patch
from .editor import EntryEditor, EntrySettings
from .scores import Scores
from .scoring import entry_editor
from .selection import SELECTORS


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
    try:
        editor = entry_editor(scores.recipe.get("method", ""))
    except BadInput as error:
        raise BadInput(f"scores of a method that cannot be selected from: {error}") from None
    given = {"mass": mass, "text_mass": text_mass, "vision_mass": vision_mass, "alpha": alpha, "rule": rule}
    changes, filled = changes_of(scores, editor, settings.make(editor, given))
    return Patch(
        changes,
        shapes={weight: tuple(values.shape) for weight, values in scores.items()},
        base=dict(scores.base),
        recipe={**scores.recipe, **filled},
        casts=dict(scores.casts),
    )


def changes_of(
    scores: Scores, editor: EntryEditor, chosen: EntrySettings
) -> tuple[dict[WeightId, Scale], dict[str, Any]]:
    """The changes of every scored weight, and by name the settings that decided them."""
    both = editor.mass if chosen.mass is None else chosen.mass
    own = {"text": chosen.text_mass, "vision": chosen.vision_mass}
    masses = {tower: both if mass is None else mass for tower, mass in own.items()}
    rules = {tower: chosen.rule or editor.rules[tower] for tower in masses}
    alpha = editor.alpha if chosen.alpha is None else chosen.alpha
    changes = {}
    for weight, values in scores.items():
        try:
            found = SELECTORS[rules[weight.modality]](values, masses[weight.modality])
        except InvalidResult as error:
            raise InvalidResult(f"{weight}: {error}") from None
        changes[weight] = Scale(found.numpy(), alpha)
    towers = sorted({weight.modality for weight in changes})
    filled = {"rule": {t: rules[t] for t in towers}, "mass": {t: masses[t] for t in towers}, "alpha": alpha}
    return changes, filled | ({"variant": scores.variant} if editor.variants else {})
