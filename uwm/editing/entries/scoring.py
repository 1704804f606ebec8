"""Scores of every chosen weight: computed from a model and pairs, stored, read back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ... import records
from ...calibration import CalibrationSet
from ...errors import BadInput, InvalidResult
from ...models import Model
from ...statistics.batches import BATCH_SIZE, PairBatch, Progress, count_batches, pair_batches
from ...statistics.channel_norms import ChannelNorms
from ...statistics.gradients import gradients
from ...statistics.passes import Reducer, run_pass
from ...weights import WeightId, match
from .methods import METHODS

TEXT_LAYERS = "out_proj"
VISION_LAYERS = "fc2"


@dataclass(frozen=True)
class Scores(Mapping[WeightId, torch.Tensor]):
    """WeightId -> scores, float32 [out, in], with what they were made from.

    Attributes:
        tensors: The scores.
        base: WeightId -> sha256 of the weight that was scored.
        casts: WeightId -> the same of its casts to other dtypes, by dtype.
        recipe: Method, its variant where that is not the default, pairs seen by tower, set fingerprint.
        guards: WeightId -> counts of the cases that the score leaves neutral.
    """

    tensors: dict[WeightId, torch.Tensor] = field(repr=False)
    base: dict[WeightId, str] = field(repr=False)
    recipe: dict[str, Any]
    guards: dict[WeightId, dict[str, int]] = field(repr=False)
    casts: dict[WeightId, dict[str, str]] = field(default_factory=dict, repr=False)

    def __getitem__(self, weight: WeightId) -> torch.Tensor:
        return self.tensors[weight]

    def __iter__(self) -> Iterator[WeightId]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def variant(self) -> str | None:
        """Of the method; None where it has none."""
        method = METHODS.get(self.recipe["method"])
        return self.recipe.get("variant") or (method.variants[0] if method and method.variants else None)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically; the same scores give the same bytes."""
        about = {"recipe": self.recipe, "base": _named(self.base), "guards": _named(self.guards)}
        about["casts"] = _named(self.casts)
        records.write(Path(path), "scores", {str(w): t for w, t in self.tensors.items()}, about)

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Read what `save` wrote. Raises BadInput when it is something else or of another version."""
        tensors, about = records.read(Path(path), "scores")
        return cls(
            {WeightId.parse(name): tensors[name] for name in sorted(tensors, key=WeightId.parse)},
            _weights(about["base"]),
            about["recipe"],
            _weights(about["guards"]),
            _weights(about["casts"]),
        )


def _named(mapping: Mapping[WeightId, Any]) -> dict[str, Any]:
    return {str(weight): value for weight, value in mapping.items()}


def _weights(mapping: Mapping[str, Any]) -> dict[WeightId, Any]:
    return {WeightId.parse(name): value for name, value in mapping.items()}


def score(
    model: Model,
    calib: CalibrationSet | Iterable[PairBatch],
    *,
    method: str = "uwm",
    variant: str | None = None,
    text_layers: str | Sequence[str] = TEXT_LAYERS,
    vision_layers: str | Sequence[str] = VISION_LAYERS,
    batch_size: int = BATCH_SIZE,
    workers: int = 2,
    progress: Progress | None = None,
    also: Sequence[Reducer] = (),
) -> Scores:
    """Score the chosen weights by how strongly they carry the unsafe side (UWM, section 4).

    Args:
        model: From `uwm.load`.
        calib: A calibration set, or any iterable of `PairBatch` (unpaired for ``ratio-of-means``, ``unsafe-only``).
        method: A name in `uwm.editing.entries.METHODS`.
        variant: Of UWM's score, in `uwm.editing.entries.uwm.VARIANTS`; the default is the paper's, ``ratio``.
        text_layers, vision_layers: Slots, globs or full names; ``"none"`` leaves the tower alone.
        batch_size: Pairs at a time; it does not change UWM's scores, it does change the gradient baselines'.
        workers: Threads that read pictures.
        progress: Wraps the batches, as tqdm does: ``progress(batches, total, name)``.
        also: Further reducers that UWM's pass feeds; the gradient baselines make no such pass and feed none.

    Raises:
        BadInput: A pattern that matches nothing, an unknown method or variant, no weight chosen.
        InvalidResult: A chosen layer saw no activations, or they were not finite.
    """
    check_method(method, variant)
    chosen = _choose(model, text_layers, vision_layers)
    if isinstance(calib, CalibrationSet):
        chosen = _with_pairs(chosen, calib, explicit=(text_layers, vision_layers))
    if not chosen:
        raise BadInput("no weight is chosen: both towers are 'none' or the set has no pairs for them")
    recipe = _named_method(method, variant)
    batches: Iterable[PairBatch]
    if isinstance(calib, CalibrationSet):
        joint, towers = METHODS[method].loss is not None, sorted({w.modality for w in chosen})
        batches = pair_batches(model, calib, batch_size=batch_size, towers=towers, workers=workers, joint=joint)
        if progress is not None:
            batches = progress(batches, count_batches(calib, batch_size, ["text"] if joint else towers), "profile")
        recipe["calibration"] = calib.fingerprint()
    else:
        batches = calib
    tensors, guards, recipe["pairs"] = _compute(method, variant, model, batches, chosen, also)
    _check_finite(tensors)
    base = {weight: model.fingerprint(weight) for weight in chosen}
    return Scores(tensors, base, recipe, guards, {weight: model.casts(weight) for weight in chosen})


def _named_method(name: str, variant: str | None) -> dict[str, Any]:
    """How scores say what made them; files of the default variant stay as they were before there were others."""
    default = variant in (None, *METHODS[name].variants[:1])
    return {"method": name} if default else {"method": name, "variant": variant}


def _check_finite(tensors: Mapping[WeightId, torch.Tensor]) -> None:
    for weight, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InvalidResult(f"{weight}: the scores hold NaN or infinite values")


def _choose(model: Model, text_layers: str | Sequence[str], vision_layers: str | Sequence[str]) -> list[WeightId]:
    """The weights that the patterns name; the defaults ask nothing of a tower that the model does not have."""
    chosen = []
    for modality, patterns, default in (("text", text_layers, TEXT_LAYERS), ("vision", vision_layers, VISION_LAYERS)):
        if modality in model.modalities or patterns != default:
            chosen += match(patterns, model.weights, modality)
    return chosen


def check_method(name: str, variant: str | None = None) -> None:
    """Refuse a name that is no scoring method, and a variant that it does not have. Raises BadInput."""
    if name not in METHODS:
        raise BadInput(f"--method {name!r}: expected one of {', '.join(METHODS)}")
    variants = METHODS[name].variants
    if variant is not None and not variants:
        raise BadInput(f"--variant {variant!r}: the method {name} has no variants; leave it out, or use --method uwm")
    if variant is not None and variant not in variants:
        raise BadInput(f"--variant {variant!r}: expected one of {', '.join(variants)}")


def _compute(
    name: str,
    variant: str | None,
    model: Model,
    batches: Iterable[PairBatch],
    chosen: list[WeightId],
    also: Sequence[Reducer],
) -> tuple[dict[WeightId, torch.Tensor], dict[WeightId, dict[str, int]], dict[str, int]]:
    """Scores, guards and pairs seen, by whichever way the method works."""
    method = METHODS[name]
    if method.loss is not None:
        found, seen = gradients(model, batches, chosen, method.loss)
        return {w: found[w].float() for w in chosen}, {w: {} for w in chosen}, seen
    assert method.scorer is not None
    variant = variant or method.variants[0]
    scorers = {weight: method.scorer(weight, model.parameter(weight), variant) for weight in chosen}
    seen = run_pass(model, batches, [ChannelNorms(scorers), *also], {w.tower for w in chosen})
    return {w: s.scores() for w, s in scorers.items()}, {w: s.guards for w, s in scorers.items()}, seen


def _with_pairs(chosen: list[WeightId], calib: CalibrationSet, explicit: tuple) -> list[WeightId]:
    """Only the towers that the set has pairs for; asking for another one by name is an error."""
    there = {"text": any(p.has_text for p in calib.pairs), "vision": any(p.has_image for p in calib.pairs)}
    for tower, given, default in zip(there, explicit, (TEXT_LAYERS, VISION_LAYERS), strict=True):
        if not there[tower] and given not in (default, "none"):
            what = "captions" if tower == "text" else "pictures"
            raise BadInput(f"--{tower}-layers {given!r}: {calib.root} has no {what} for the {tower} tower")
    return [weight for weight in chosen if there[weight.modality]]
