"""The reversible edit: made from scores, and applied to a live model while a block runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from .checkpoint import Edit
from .errors import BadInput, InvalidResult
from .models import Model
from .patch_file import PATCH_FILE, Patch
from .scorers import METHODS
from .scoring import Scores
from .selection import RULES, check_share

__all__ = ["PATCH_FILE", "Patch", "check_settings", "patched", "random_control", "select"]


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
    return Patch(
        flips=flips,
        shapes={weight: (values.shape[0], values.shape[1]) for weight, values in scores.items()},
        base=dict(scores.base),
        alpha=alpha,
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


def random_control(patch: Patch, seed: int = 0) -> Patch:
    """As many entries of the same weights, drawn at random: the control that every comparison shows."""
    flips = {}
    for number, (weight, indices) in enumerate(patch.flips.items()):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        size = math.prod(patch.shapes[weight])
        flips[weight] = torch.randperm(size, generator=generator)[: len(indices)].sort().values
    return replace(patch, flips=flips, recipe={"method": "random", "seed": seed}, originals={})


def magnitude_control(patch: Patch, model: Model) -> Patch:
    """As many entries of the same weights, those of largest |W|, of equal ones the first: the other control.

    Args:
        patch: It gives the counts and α.
        model: Unedited, the one that the patch was made for.

    Raises:
        BadInput: As `patched`.
    """
    _check_live(model, patch)
    flips = {}
    for weight, indices in patch.flips.items():
        order = model.stored(weight).flatten().double().abs().argsort(descending=True, stable=True)
        flips[weight] = order[: len(indices)].sort().values
    return replace(patch, flips=flips, recipe={"method": "magnitude"}, originals={})


@contextmanager
def patched(model: Model, patch: Patch) -> Iterator[Model]:
    """Edit the model in place while the body runs; every bit comes back on exit, also when the body raises.

    Raises:
        BadInput: The model lacks a weight of the patch, is not the one it was made for, or is already patched.
    """
    _check_live(model, patch)
    kept = {weight: model.parameter(weight).view(-1)[_on(model, indices)] for weight, indices in patch.flips.items()}
    model.edited.update(patch.flips)
    try:
        for weight, indices in patch.flips.items():
            stored = model.stored(weight).clone().flatten()
            changed = Edit(indices, patch.alpha).apply(stored)[indices]
            live = model.parameter(weight).view(-1)
            live[_on(model, indices)] = changed.to(device=live.device, dtype=live.dtype)
        yield model
    finally:
        for weight, values in kept.items():
            model.parameter(weight).view(-1)[_on(model, patch.flips[weight])] = values
        model.edited.difference_update(patch.flips)


def _on(model: Model, indices: torch.Tensor) -> torch.Tensor:
    return indices.to(model.device)


def _check_live(model: Model, patch: Patch) -> None:
    for weight in patch.flips:
        if weight not in model.weights:
            raise BadInput(f"the patch edits {weight}, which this model does not have")
        if weight in model.edited:
            raise BadInput(f"{weight} is already patched; leave the earlier `patched` block first")
        if tuple(model.parameter(weight).shape) != patch.shapes[weight]:
            shape = list(model.parameter(weight).shape)
            raise BadInput(f"the patch was made for {weight} of {list(patch.shapes[weight])}, this model has {shape}")
        if model.fingerprint(weight) != patch.base[weight]:
            raise BadInput(f"{weight} differs from the weight this patch was made for; score this model anew")
