"""What happens to one tensor: entries are scaled, entries are set, or a matrix of low rank is added. NumPy only.

A change works on any run of a tensor's values in row order, with the same bits whatever the run, so that a file is
edited piece by piece and equals the live model. A new kind is a class here and a row in `KINDS`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from ..checkpoint.dtypes import BY_NAME, Bits, Dtype
from ..schema import NUMBER, Check, Forms, TensorForm, keyed

Shape = tuple[int, ...]
FLOATS = tuple(name for name, dtype in BY_NAME.items() if dtype.kind == "float" and dtype.itemsize > 1)
INDICES = TensorForm(("int64",), (None,), empty=True)


@dataclass(frozen=True)
class Summary:
    """What people are told of a change.

    Attributes:
        kind: Of the change.
        words: What became of the entries, such as "negated".
        entries: How many entries may differ afterwards.
        of: How many the tensor has.
        rank: Of an added matrix; None for other kinds.
        relative_norm: ‖change‖ / ‖tensor‖ (Frobenius), where it is known.
    """

    kind: str
    words: str
    entries: int
    of: int
    rank: int | None = None
    relative_norm: float | None = None


class Change(Protocol):
    """What happens to one tensor of a given shape."""

    kind: ClassVar[str]
    settings: ClassVar[Check]  # of what `stored` gives
    tensors: ClassVar[Forms]  # likewise; `fits` holds them against the tensor that they change

    def change(self, bits: np.ndarray, dtype: Dtype, first: int = 0) -> None:
        """Change a run of values in place, as bit patterns; `first` is the flat index of the run's first value."""

    def inverse(self) -> Change | None:
        """The change that takes this one back, up to rounding; None where there is none."""

    def touched(self) -> np.ndarray | None:
        """Sorted flat indices of the entries that may differ; None for all of them."""

    def fits(self, shape: Shape) -> bool:
        """Whether a tensor of this shape can be changed so."""

    def stored(self) -> tuple[dict[str, Bits], dict[str, Any]]:
        """Tensors and settings for the patch file; the class method `read` takes them back."""

    def summary(self, shape: Shape) -> Summary:
        """What people are told."""

    def random(self, shape: Shape, seed: int) -> Change:
        """The control: a change of equal kind and size, drawn at random."""


# ---------------------------------------------------------------- scale


@dataclass(frozen=True)
class Scale:
    """Some entries are multiplied by a factor (UWM, section 4: W_ij ← α W_ij).

    Attributes:
        indices: Sorted flat indices, int64 [n].
        factor: α; −1 only touches the sign bit, of −0 and NaN too.
    """

    indices: np.ndarray
    factor: float = -1.0
    kind: ClassVar[str] = "scale"
    settings: ClassVar[Check] = keyed({"factor": NUMBER})
    tensors: ClassVar[Forms] = {"indices": INDICES}

    def change(self, bits: np.ndarray, dtype: Dtype, first: int = 0) -> None:
        where = _within(self.indices, first, len(bits))[0]
        old = bits[where]
        bits[where] = dtype.negated(old) if self.factor == -1.0 else _scaled(Bits(dtype, old), self.factor)

    def inverse(self) -> Change | None:
        return self if self.factor == -1.0 else None

    def touched(self) -> np.ndarray | None:
        return self.indices

    def fits(self, shape: Shape) -> bool:
        return _are_indices(self.indices, shape)

    def stored(self) -> tuple[dict[str, Bits], dict[str, Any]]:
        return {"indices": Bits.of(self.indices)}, {"factor": self.factor}

    @classmethod
    def read(cls, tensors: Mapping[str, Bits], settings: Mapping[str, Any]) -> Scale:
        return cls(_int64(tensors["indices"]), _number(settings["factor"]))

    def summary(self, shape: Shape) -> Summary:
        words = "negated" if self.factor == -1.0 else f"multiplied by {self.factor:g}"
        return Summary(self.kind, words, len(self.indices), math.prod(shape))

    def random(self, shape: Shape, seed: int) -> Change:
        return Scale(_draw(shape, len(self.indices), seed), self.factor)


def _scaled(old: Bits, factor: float) -> np.ndarray:
    """Multiplied in double precision and rounded as torch rounds, as patches of format 1 were."""
    return Bits.of((old.torch().double() * factor).to(old.dtype.torch)).array


# ---------------------------------------------------------------- set


@dataclass(frozen=True)
class SetEntries:
    """Some entries get new values.

    Attributes:
        indices: Sorted flat indices, int64 [n].
        values: [n], of the tensor's own type (kept bit for bit) or of float64 (rounded once).
    """

    indices: np.ndarray
    values: Bits
    kind: ClassVar[str] = "set"
    settings: ClassVar[Check] = keyed({})
    tensors: ClassVar[Forms] = {"indices": INDICES, "values": TensorForm(FLOATS, (None,), empty=True)}

    @classmethod
    def of(cls, indices: Any, values: Any) -> SetEntries:
        """From arrays or tensors in any order: flat indices [n] and new values [n]."""
        indices, values = np.asarray(indices, np.int64), np.asarray(values, np.float64)
        order = np.argsort(indices, kind="stable")
        return cls(indices[order], Bits.of(values[order]))

    def change(self, bits: np.ndarray, dtype: Dtype, first: int = 0) -> None:
        where, chosen = _within(self.indices, first, len(bits))
        values = self.values.array[chosen]
        bits[where] = values if self.values.dtype == dtype else dtype.rounded(self.values.dtype.doubles(values))

    def inverse(self) -> Change | None:
        return None

    def touched(self) -> np.ndarray | None:
        return self.indices

    def fits(self, shape: Shape) -> bool:
        if self.values.dtype.kind != "float" or self.values.array.shape != self.indices.shape:
            return False
        return _are_indices(self.indices, shape) and (
            self.values.dtype.name != "float64" or bool(np.isfinite(self.values.array.view(np.float64)).all())
        )

    def stored(self) -> tuple[dict[str, Bits], dict[str, Any]]:
        return {"indices": Bits.of(self.indices), "values": self.values}, {}

    @classmethod
    def read(cls, tensors: Mapping[str, Bits], settings: Mapping[str, Any]) -> SetEntries:
        return cls(_int64(tensors["indices"]), tensors["values"])

    def summary(self, shape: Shape) -> Summary:
        return Summary(self.kind, "set to new values", len(self.indices), math.prod(shape))

    def random(self, shape: Shape, seed: int) -> Change:
        values = self.values.array[np.random.default_rng(seed).permutation(len(self.indices))]
        return SetEntries(_draw(shape, len(self.indices), seed), Bits(self.values.dtype, values))


# ---------------------------------------------------------------- add


@dataclass(frozen=True)
class AddLowRank:
    """A matrix of low rank is added: W ← W + left · rightᵀ.

    In float64, summed over the rank element by element in order (no BLAS, whose order depends on the machine), and
    rounded once to the stored type.

    Attributes:
        left: float64 [out, rank].
        right: float64 [in, rank].
    """

    left: np.ndarray
    right: np.ndarray
    kind: ClassVar[str] = "add low rank"
    settings: ClassVar[Check] = keyed({})
    tensors: ClassVar[Forms] = {side: TensorForm(FLOATS, (None, None)) for side in ("left", "right")}

    @classmethod
    def of(cls, left: Any, right: Any) -> AddLowRank:
        """From arrays or tensors, [out, rank] and [in, rank]."""
        return cls(*(np.ascontiguousarray(np.asarray(side, np.float64)) for side in (left, right)))

    def change(self, bits: np.ndarray, dtype: Dtype, first: int = 0) -> None:
        if not len(bits):
            return
        width = len(self.right)
        top, bottom = first // width, -(-(first + len(bits)) // width)  # the rows that the run lies in
        added = np.zeros((bottom - top, width))
        for k in range(self.left.shape[1]):
            added += self.left[top:bottom, k, None] * self.right[None, :, k]
        run = added.reshape(-1)[first - top * width :][: len(bits)]
        bits[:] = dtype.rounded(dtype.doubles(bits) + run)

    def inverse(self) -> Change | None:
        return AddLowRank(-self.left, self.right)

    def touched(self) -> np.ndarray | None:
        return None

    def fits(self, shape: Shape) -> bool:
        sides = (self.left, self.right)
        flat = all(side.ndim == 2 and np.isfinite(side).all() for side in sides)
        return flat and shape == (len(self.left), len(self.right)) and self.left.shape[1] == self.right.shape[1]

    def stored(self) -> tuple[dict[str, Bits], dict[str, Any]]:
        return {"left": Bits.of(self.left), "right": Bits.of(self.right)}, {}

    @classmethod
    def read(cls, tensors: Mapping[str, Bits], settings: Mapping[str, Any]) -> AddLowRank:
        return cls(*(tensors[name].dtype.doubles(tensors[name].array) for name in ("left", "right")))

    def summary(self, shape: Shape) -> Summary:
        size, rank = math.prod(shape), self.left.shape[1]
        return Summary(self.kind, f"changed by a matrix of rank {rank}", size, size, rank)

    def random(self, shape: Shape, seed: int) -> Change:
        """Gaussian factors of the same rank, scaled to the same Frobenius norm."""
        rng = np.random.default_rng(seed)
        left, right = rng.standard_normal(self.left.shape), rng.standard_normal(self.right.shape)
        return AddLowRank(left * (_norm(self.left, self.right) / _norm(left, right)), right)


def _norm(left: np.ndarray, right: np.ndarray) -> float:
    """The Frobenius norm of left · rightᵀ."""
    return math.sqrt(max(float(((left.T @ left) * (right.T @ right)).sum()), 0.0))


# ---------------------------------------------------------------- several, and what they share


@dataclass(frozen=True)
class Chain:
    """Changes of one tensor, one after another; for the writer, no kind of its own."""

    changes: Sequence[Change]

    def change(self, bits: np.ndarray, dtype: Dtype, first: int = 0) -> None:
        """As `Change.change`."""
        for change in self.changes:
            change.change(bits, dtype, first)


KINDS: dict[str, Any] = {kind.kind: kind for kind in (Scale, SetEntries, AddLowRank)}


def _within(indices: np.ndarray, first: int, count: int) -> tuple[np.ndarray, slice]:
    """Which places of a run the indices name, and which of the indices these are."""
    begin, end = np.searchsorted(indices, (first, first + count))
    return indices[begin:end] - first, slice(begin, end)


def _are_indices(indices: np.ndarray, shape: Shape) -> bool:
    """Whether these are sorted flat indices into the shape, each once."""
    if indices.dtype != np.int64 or indices.ndim != 1:
        return False
    inside = not len(indices) or bool(indices[0] >= 0 and indices[-1] < math.prod(shape))
    return inside and bool((indices[1:] > indices[:-1]).all())  # a difference could overflow


def _int64(stored: Bits) -> np.ndarray:
    if stored.dtype.name != "int64":
        raise TypeError(f"indices of type {stored.dtype.name}")
    return stored.array.view(np.int64)


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise TypeError(f"factor {value!r}")
    return value if abs(value) < 2**53 else float(value)  # torch takes no larger whole numbers


def _draw(shape: Shape, count: int, seed: int) -> np.ndarray:
    """Sorted flat indices drawn without replacement; by torch, as controls always were."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(math.prod(shape), generator=generator)[:count].sort().values.numpy()
