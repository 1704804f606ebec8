"""The reversible edit: made from scores, and applied to a live model while a block runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from . import records
from .checkpoint import Edit
from .errors import BadInput, InvalidResult
from .models import Model
from .scorers import METHODS
from .scoring import Scores
from .selection import RULES, check_share
from .weights import WeightId

PATCH_FILE = "uwm_patch.safetensors"
ORIGINALS = "originals."  # prefix of the replaced values' tensor names


@dataclass(frozen=True)
class Patch:
    """Which entries of which weights change, and how (UWM, section 4: W_ij ← α W_ij).

    Attributes:
        flips: WeightId -> sorted flat indices into [out, in], int64.
        shapes: WeightId -> (out, in).
        base: WeightId -> sha256 of the unedited weight; a patch fits nothing else.
        alpha: α.
        recipe: How it came about.
        originals: The replaced values where α is not −1, WeightId -> [n] in the stored dtype.
        casts: WeightId -> sha256 of the unedited weight cast to other dtypes, by dtype.
        aliases: Tensor name -> other names that hold the same matrix in the edited checkpoint (tied weights).
    """

    flips: dict[WeightId, torch.Tensor] = field(repr=False)
    shapes: dict[WeightId, tuple[int, int]] = field(repr=False)
    base: dict[WeightId, str] = field(repr=False)
    alpha: float = -1.0
    recipe: dict[str, Any] = field(default_factory=dict)
    originals: dict[WeightId, torch.Tensor] = field(default_factory=dict, repr=False)
    casts: dict[WeightId, dict[str, str]] = field(default_factory=dict, repr=False)
    aliases: dict[str, list[str]] = field(default_factory=dict, repr=False)

    def counts(self) -> dict[WeightId, int]:
        """How many entries change, by weight."""
        return {weight: len(indices) for weight, indices in self.flips.items()}

    def save(self, path: str | Path) -> None:
        """Write one small safetensors file, atomically; the same patch gives the same bytes."""
        tensors = {str(w): indices for w, indices in self.flips.items()}
        tensors |= {f"{ORIGINALS}{w}": values for w, values in self.originals.items()}
        about = {
            "alpha": self.alpha,
            "recipe": self.recipe,
            "weights": {str(w): self._about(w) for w in self.flips},
            "aliases": self.aliases,
        }
        records.write(Path(path), "patch", tensors, about)

    def _about(self, weight: WeightId) -> dict[str, Any]:
        about = {"shape": list(self.shapes[weight]), "base_sha256": self.base[weight]}
        return about | {"casts_sha256": self.casts.get(weight, {})}

    @classmethod
    def load(cls, path: str | Path) -> Patch:
        """Read what `save` wrote, from the file or from the folder that holds it. Raises BadInput."""
        path = Path(path)
        path = path / PATCH_FILE if path.is_dir() else path
        tensors, about = records.read(path, "patch")
        try:
            weights = {WeightId.parse(name): entry for name, entry in sorted(about["weights"].items())}
            patch = cls(
                flips={w: tensors[str(w)] for w in sorted(weights)},
                shapes={w: tuple(weights[w]["shape"]) for w in sorted(weights)},
                base={w: weights[w]["base_sha256"] for w in sorted(weights)},
                alpha=_number(about["alpha"]),
                recipe=about["recipe"],
                originals={w: tensors[f"{ORIGINALS}{w}"] for w in sorted(weights) if f"{ORIGINALS}{w}" in tensors},
                casts={w: dict(weights[w]["casts_sha256"]) for w in sorted(weights)},
                aliases={str(name): list(others) for name, others in about["aliases"].items()},
            )
            sound = all(_sound(indices, patch.shapes[w], patch.originals.get(w)) for w, indices in patch.flips.items())
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise BadInput(f"{path}: damaged patch ({error!r}); make it anew with `uwm select`") from None
        if not sound:
            raise BadInput(f"{path}: damaged patch (its indices do not fit its shapes); make it anew with `uwm select`")
        return patch


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"alpha {value!r}")
    return value


def _sound(indices: torch.Tensor, shape: tuple[int, int], originals: torch.Tensor | None) -> bool:
    """Whether these are sorted flat indices into the shape, each once, with as many original values."""
    if indices.dtype != torch.int64 or indices.ndim != 1 or len(shape) != 2:
        return False
    inside = not len(indices) or bool(indices[0] >= 0 and indices[-1] < math.prod(shape))
    return inside and bool((indices.diff() > 0).all()) and (originals is None or originals.shape == indices.shape)


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
