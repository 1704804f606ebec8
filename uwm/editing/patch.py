"""The patch as it is kept: what happens to which tensors, written and read without torch. Format 2; reads format 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import records
from ..checkpoint.dtypes import Bits
from ..checkpoint.reader import CASTS
from ..errors import BadInput
from ..schema import (
    NUMBER,
    OBJECT,
    SHA256,
    TEXT,
    Forms,
    TensorForm,
    choice,
    each,
    keyed,
    listed,
    mapped,
    nullable,
    whole,
    within,
)
from ..weights import WeightId, weight_name
from .changes import INDICES, KINDS, Chain, Change, Scale, SetEntries, Summary

if TYPE_CHECKING:
    import torch

PATCH_FILE = "uwm_patch.safetensors"
MISSED = "missed"  # between a tensor's name and its parts, for the entries that the inverse does not give back


@dataclass(frozen=True)
class Patch:
    """What happens to which tensors, and how it is undone.

    A patch is undone by each change's inverse, and then by setting the entries that the inverse missed: none for −1,
    all for α = 0 and for entries that were set, a few for a matrix of low rank. They are found when the patch is
    fitted to a checkpoint (`uwm.editing.files.fit`), so only a fitted patch undoes every kind.

    Attributes:
        changes: Name -> change.
        shapes: Name -> the tensor's shape, ``(out, in)`` or ``(out,)``.
        base: Name -> sha256 of the unedited tensor; a patch fits nothing else.
        recipe: How it came about.
        edited: Name -> sha256 of the edited tensor, once fitted.
        missed: Name -> the entries that the inverse does not give back, in their stored bits.
        norms: Name -> ‖change‖ / ‖tensor‖ (Frobenius) of changes that are not scalings, once fitted.
        casts: Name -> sha256 of the unedited tensor cast to other dtypes, by dtype.
        aliases: Tensor key -> other keys that hold the same tensor in the edited checkpoint (tied weights).
    """

    changes: Mapping[WeightId, Change] = field(repr=False)
    shapes: dict[WeightId, tuple[int, ...]] = field(repr=False)
    base: dict[WeightId, str] = field(repr=False)
    recipe: dict[str, Any] = field(default_factory=dict)
    edited: dict[WeightId, str] = field(default_factory=dict, repr=False)
    missed: dict[WeightId, SetEntries] = field(default_factory=dict, repr=False)
    norms: dict[WeightId, float] = field(default_factory=dict, repr=False)
    casts: dict[WeightId, dict[str, str]] = field(default_factory=dict, repr=False)
    aliases: dict[str, list[str]] = field(default_factory=dict, repr=False)

    @classmethod
    def scaled(cls, flips: Mapping[WeightId, Any], *, alpha: float = -1.0, **rest: Any) -> Patch:
        """A patch that multiplies entries: name -> sorted flat indices (array or tensor), and the fields above."""
        changes = {name: Scale(np.asarray(indices, np.int64), alpha) for name, indices in flips.items()}
        return cls(changes, **rest)

    @property
    def flips(self) -> dict[WeightId, torch.Tensor]:
        """Name -> sorted flat indices, int64 [n], of the tensors whose entries are scaled."""
        import torch

        scaled = {name: change for name, change in self.changes.items() if isinstance(change, Scale)}
        return {name: torch.from_numpy(change.indices) for name, change in scaled.items()}

    @property
    def alpha(self) -> float | None:
        """The factor of all changes; None where they are not scalings by one factor."""
        factors = {change.factor if isinstance(change, Scale) else None for change in self.changes.values()}
        return next(iter(factors)) if len(factors) == 1 else None

    def summaries(self) -> dict[WeightId, Summary]:
        """What people are told of every change, with its size beside the tensor's where that is known."""
        told = {name: change.summary(self.shapes[name]) for name, change in self.changes.items()}
        return {name: replace(summary, relative_norm=self.norms.get(name)) for name, summary in told.items()}

    def counts(self) -> dict[WeightId, int]:
        """How many entries change, by name."""
        return {name: summary.entries for name, summary in self.summaries().items()}

    def undo(self, name: WeightId) -> Chain | None:
        """What takes the change of a tensor back; None where a patch that is not fitted does not know it."""
        change = self.changes[name]
        inverse, missed = change.inverse(), self.missed.get(name)
        if inverse is not change and name not in self.edited and missed is None:
            return None
        return Chain([step for step in (inverse, missed) if step is not None])

    def save(self, path: str | Path) -> None:
        """Write `content` to a file, atomically. Raises BadInput where something is there that is no patch of ours."""
        records.save(Path(path), "patch", self.content())

    def content(self) -> bytes:
        """One small safetensors file; the same patch gives the same bytes."""
        tensors: dict[str, Bits] = {}
        weights = {}
        for name in sorted(self.changes):
            parts, settings = self.changes[name].stored()
            missed = {} if name not in self.missed else self.missed[name].stored()[0]
            tensors |= {f"{name}:{part}": bits for part, bits in parts.items()}
            tensors |= {f"{name}:{MISSED}:{part}": bits for part, bits in missed.items()}
            weights[str(name)] = self._about(name, settings)
        about = {"recipe": self.recipe, "weights": weights, "aliases": self.aliases}
        return records.content("patch", tensors, about)

    def _about(self, name: WeightId, settings: dict[str, Any]) -> dict[str, Any]:
        about: dict[str, Any] = {"kind": self.changes[name].kind, "settings": settings}
        about |= {"shape": list(self.shapes[name]), "base_sha256": self.base[name]}
        about |= {"edited_sha256": self.edited.get(name), "relative_norm": self.norms.get(name)}
        return about | {"casts_sha256": self.casts.get(name, {})}

    @classmethod
    def load(cls, path: str | Path) -> Patch:
        """Read what `save` wrote, from the file or from the folder that holds it. Raises BadInput."""
        path = Path(path)
        path = path / PATCH_FILE if path.is_dir() else path
        tensors, about = records.read_bits(path, "patch", FORM)
        for name in about["weights"]:
            _demand_both(path, tensors, f"{name}:{MISSED}:")
        patch = _read(tensors, about) if about["format"] > 1 else _read_first(tensors, about)
        for name in patch.changes:
            _demand_sound(path, patch, name)
        return patch


def _read(tensors: Mapping[str, Bits], about: Mapping[str, Any]) -> Patch:
    weights = dict(sorted((WeightId.parse(name), entry) for name, entry in about["weights"].items()))
    parts = {name: _parts(tensors, f"{name}:") for name in weights}
    missed = {name: _parts(tensors, f"{name}:{MISSED}:") for name in weights}
    return Patch(
        changes={n: KINDS[entry["kind"]].read(parts[n], entry["settings"]) for n, entry in weights.items()},
        recipe=about["recipe"],
        edited={n: entry["edited_sha256"] for n, entry in weights.items() if entry["edited_sha256"] is not None},
        missed={n: SetEntries.read(found, {}) for n, found in missed.items() if found},
        norms={n: float(entry["relative_norm"]) for n, entry in weights.items() if entry["relative_norm"] is not None},
        **_shared(weights, about),
    )


def _read_first(tensors: Mapping[str, Bits], about: Mapping[str, Any]) -> Patch:
    """Format 1: one α, indices under the weight's name, the replaced values under ``originals.`` and its name."""
    weights = dict(sorted((WeightId.parse(name), entry) for name, entry in about["weights"].items()))
    changes = {n: Scale.read({"indices": tensors[str(n)]}, {"factor": about["alpha"]}) for n in weights}
    kept = {n: tensors[f"originals.{n}"] for n in weights if f"originals.{n}" in tensors}
    missed = {n: SetEntries(changes[n].indices.copy(), values) for n, values in kept.items()}
    return Patch(changes, recipe=about["recipe"], missed=missed, **_shared(weights, about))


def _shared(weights: Mapping[WeightId, Mapping[str, Any]], about: Mapping[str, Any]) -> dict[str, Any]:
    """What both formats say in the same words."""
    return {
        "shapes": {name: tuple(entry["shape"]) for name, entry in weights.items()},
        "base": {name: entry["base_sha256"] for name, entry in weights.items()},
        "casts": {name: dict(entry["casts_sha256"]) for name, entry in weights.items()},
        "aliases": {str(key): list(others) for key, others in about["aliases"].items()},
    }


def _parts(tensors: Mapping[str, Bits], prefix: str) -> dict[str, Bits]:
    """The tensors of one change by their own names."""
    found = {name[len(prefix) :]: bits for name, bits in tensors.items() if name.startswith(prefix)}
    return {name: bits for name, bits in found.items() if ":" not in name}


# ---------------------------------------------------------------- what a file of it must hold


def _tensors_of_first(about: Mapping[str, Any]) -> tuple[Forms, Forms]:
    values = SetEntries.tensors["values"]
    return dict.fromkeys(about["weights"], INDICES), {f"originals.{name}": values for name in about["weights"]}


def _tensors(about: Mapping[str, Any]) -> tuple[Forms, Forms]:
    """The tensors of every change, and of what its inverse missed."""
    if about["format"] == 1:
        return _tensors_of_first(about)
    needed: dict[str, TensorForm] = {}
    missed: dict[str, TensorForm] = {}
    for name, entry in about["weights"].items():
        needed |= {f"{name}:{part}": form for part, form in KINDS[entry["kind"]].tensors.items()}
        missed |= {f"{name}:{MISSED}:{part}": form for part, form in SetEntries.tensors.items()}
    return needed, missed


def _settings(entry: Mapping[str, Any], place: str) -> None:
    KINDS[entry["kind"]].settings(entry["settings"], f"{place}.settings")


SHAPE = listed(whole(1, 2**40), least=1, most=2)
CASTED = mapped(SHA256, choice(*CASTS))
SHARED = {"shape": SHAPE, "base_sha256": SHA256, "casts_sha256": CASTED}
ABOUT = {"recipe": OBJECT, "aliases": mapped(listed(TEXT))}
WEIGHT = keyed(
    {**SHARED, "kind": choice(*KINDS), "settings": OBJECT, "edited_sha256": nullable(SHA256)}
    | {"relative_norm": nullable(within(0, 1e308))}
)
FIRST = keyed({**ABOUT, "weights": mapped(keyed(SHARED), weight_name, least=1), "alpha": NUMBER})
SECOND = keyed({**ABOUT, "weights": mapped(each(WEIGHT, _settings), weight_name, least=1)})
FORM = records.Form(
    lambda about, place: (FIRST if about["format"] == 1 else SECOND)(about, place),
    _tensors,
    "make it anew with `uwm edit` or `uwm select`",
)


def _demand_both(path: Path, tensors: Mapping[str, Bits], prefix: str) -> None:
    """Refuse missed entries without their values, or the other way round. Raises BadInput."""
    parts = [part for part in SetEntries.tensors if prefix + part in tensors]
    if len(parts) == 1:
        raise BadInput(
            f"{path}: damaged: tensor {prefix}{parts[0]}: expected its partner too, found none; {FORM.remedy}"
        )


def _demand_sound(path: Path, patch: Patch, name: WeightId) -> None:
    """Refuse a change that does not fit its tensor, or what its inverse missed that does not. Raises BadInput."""
    shape, missed = patch.shapes[name], patch.missed.get(name)
    odd = [change for change in (patch.changes[name], missed) if change is not None and not change.fits(shape)]
    if odd:
        raise BadInput(
            f"{path}: damaged: {name}: expected a change ({odd[0].kind}) of finite numbers that fits a tensor of "
            f"{list(shape)}, found another; {FORM.remedy}"
        )
