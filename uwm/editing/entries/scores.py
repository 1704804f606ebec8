"""Scores of every chosen weight, stored and read back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ... import records
from ...checkpoint.reader import CASTS
from ...errors import BadInput, InvalidResult
from ...schema import COUNT, SHA256, TEXT, Forms, TensorForm, Unexpected, choice, each, keyed, mapped, nullable
from ...weights import WeightId, weight_name

ANEW = "make them anew with `uwm score`"


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
        from .scoring import entry_editor

        return self.recipe.get("variant") or next(iter(entry_editor(self.recipe["method"]).variants), None)

    def check(self) -> None:
        """Refuse scores that cannot be selected from. Raises InvalidResult."""
        for weight, tensor in self.tensors.items():
            if not torch.isfinite(tensor).all():
                raise InvalidResult(f"{weight}: the scores hold NaN or infinite values")

    def save(self, path: str | Path) -> None:
        """Write `content` to a file, atomically. Raises BadInput where something is there that is no scores of ours."""
        records.save(Path(path), "scores", self.content())

    def content(self) -> bytes:
        """One safetensors file; the same scores give the same bytes."""
        about = {"recipe": self.recipe, "base": _named(self.base), "guards": _named(self.guards)}
        about["casts"] = _named(self.casts)
        return records.content("scores", {str(w): t for w, t in self.tensors.items()}, about)

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Read what `save` wrote. Raises BadInput when it is something else, damaged or of another version."""
        tensors, about = records.read(Path(path), "scores", FORM)
        odd = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
        if odd:
            raise BadInput(f"{path}: damaged: tensor {odd[0]}: expected finite scores, found NaN or infinity; {ANEW}")
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


# ---------------------------------------------------------------- what a file of them must hold


def _same_weights(about: Mapping[str, Any], place: str) -> None:
    """What is told of weights is told of weights that `base` names."""
    for part in ("guards", "casts"):
        if odd := [name for name in about[part] if name not in about["base"]]:
            raise Unexpected(f"{part}.{odd[0]}", "a weight that base names too", about[part][odd[0]])


def _tensors(about: Mapping[str, Any]) -> tuple[Forms, Forms]:
    return dict.fromkeys(about["base"], TensorForm(("float32",), (None, None))), {}


RECIPE = keyed({"method": TEXT}, {"variant": nullable(TEXT), "calibration": TEXT, "pairs": mapped(COUNT)})
PARTS = {
    "recipe": RECIPE,
    "base": mapped(SHA256, weight_name, least=1),
    "guards": mapped(mapped(COUNT), weight_name),
    "casts": mapped(mapped(SHA256, choice(*CASTS)), weight_name),
}
FORM = records.Form(each(keyed(PARTS), _same_weights), _tensors, ANEW)
