"""The patch as it is kept: which entries change and how, written and read without torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import records
from ..checkpoint.dtypes import Bits
from ..errors import BadInput
from ..weights import WeightId

if TYPE_CHECKING:
    import torch

PATCH_FILE = "uwm_patch.safetensors"
ORIGINALS = "originals."  # prefix of the replaced values' tensor names


class StoredTensors(Mapping[WeightId, "torch.Tensor"]):
    """Tensors by weight as a file stores them; torch is imported when one is asked for."""

    def __init__(self, bits: dict[WeightId, Bits]) -> None:
        self.bits = bits

    def __getitem__(self, weight: WeightId) -> torch.Tensor:
        return self.bits[weight].torch()

    def __iter__(self) -> Iterator[WeightId]:
        return iter(self.bits)

    def __len__(self) -> int:
        return len(self.bits)


def _stored(tensors: Mapping[WeightId, torch.Tensor]) -> dict[WeightId, Bits]:
    return tensors.bits if isinstance(tensors, StoredTensors) else {w: Bits.of(t) for w, t in tensors.items()}


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

    flips: Mapping[WeightId, torch.Tensor] = field(repr=False)
    shapes: dict[WeightId, tuple[int, int]] = field(repr=False)
    base: dict[WeightId, str] = field(repr=False)
    alpha: float = -1.0
    recipe: dict[str, Any] = field(default_factory=dict)
    originals: Mapping[WeightId, torch.Tensor] = field(default_factory=dict, repr=False)
    casts: dict[WeightId, dict[str, str]] = field(default_factory=dict, repr=False)
    aliases: dict[str, list[str]] = field(default_factory=dict, repr=False)

    def counts(self) -> dict[WeightId, int]:
        """How many entries change, by weight."""
        return {weight: len(indices) for weight, indices in self.indices().items()}

    def indices(self) -> dict[WeightId, np.ndarray]:
        """`flips` as NumPy arrays."""
        return {weight: bits.array.view(np.int64) for weight, bits in _stored(self.flips).items()}

    def replaced(self) -> dict[WeightId, Bits]:
        """`originals` as bit patterns."""
        return _stored(self.originals)

    def save(self, path: str | Path) -> None:
        """Write one small safetensors file, atomically; the same patch gives the same bytes."""
        tensors = {str(w): indices for w, indices in _stored(self.flips).items()}
        tensors |= {f"{ORIGINALS}{w}": values for w, values in self.replaced().items()}
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
        tensors, about = records.read_bits(path, "patch")
        try:
            weights = {WeightId.parse(name): entry for name, entry in sorted(about["weights"].items())}
            patch = cls(
                flips=StoredTensors({w: tensors[str(w)] for w in sorted(weights)}),
                shapes={w: tuple(weights[w]["shape"]) for w in sorted(weights)},
                base={w: weights[w]["base_sha256"] for w in sorted(weights)},
                alpha=_number(about["alpha"]),
                recipe=about["recipe"],
                originals=StoredTensors(
                    {w: tensors[f"{ORIGINALS}{w}"] for w in sorted(weights) if f"{ORIGINALS}{w}" in tensors}
                ),
                casts={w: dict(weights[w]["casts_sha256"]) for w in sorted(weights)},
                aliases={str(name): list(others) for name, others in about["aliases"].items()},
            )
            replaced = patch.replaced()
            sound = all(_sound(tensors[str(w)], patch.shapes[w], replaced.get(w)) for w in weights)
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise BadInput(f"{path}: damaged patch ({error!r}); make it anew with `uwm select`") from None
        if not sound:
            raise BadInput(f"{path}: damaged patch (its indices do not fit its shapes); make it anew with `uwm select`")
        return patch


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"alpha {value!r}")
    return value


def _sound(stored: Bits, shape: tuple[int, int], originals: Bits | None) -> bool:
    """Whether these are sorted flat indices into the shape, each once, with as many original values."""
    if stored.dtype.name != "int64" or stored.array.ndim != 1 or len(shape) != 2:
        return False
    indices = stored.array.view(np.int64)
    inside = not len(indices) or bool(indices[0] >= 0 and indices[-1] < math.prod(shape))
    ordered = bool((np.diff(indices) > 0).all())
    return inside and ordered and (originals is None or originals.array.shape == indices.shape)
