"""What a change makes of a stored tensor: its hash after the edit, and what the inverse misses. Nothing is written."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from ..checkpoint import Checkpoint
from ..checkpoint.dtypes import Bits, Dtype
from ..errors import InvalidResult
from ..weights import WeightId
from .changes import Change, Scale, SetEntries


@dataclass(frozen=True)
class Trace:
    """What a change makes of one stored tensor.

    Attributes:
        base, edited: sha256 before and after.
        missed: The entries that the inverse does not give back, with their bits before the edit.
        norm: ‖change‖ / ‖tensor‖ (Frobenius) of changes that are not scalings.
    """

    base: str
    edited: str
    missed: SetEntries
    norm: float | None


def trace(checkpoint: Checkpoint, name: WeightId, change: Change) -> Trace:
    """Follow a change through a tensor piece by piece; nothing is written.

    Raises:
        InvalidResult: The edited tensor would hold NaN or infinite values that the unedited one does not.
    """
    before, after = hashlib.sha256(), hashlib.sha256()
    dtype, first, inverse = checkpoint.info(name).dtype, 0, change.inverse()
    places, values, squares = [], [], np.zeros(2)
    for stored in checkpoint.chunks(name):
        bits = stored.copy()
        change.change(bits, dtype, first)
        before.update(stored.data)
        after.update(bits.data)
        if inverse is not change:
            if not isinstance(change, Scale):
                squares += _squares(dtype, stored, bits, name)
            where = _missed(stored, bits, change, dtype, first)
            places.append(where + first)
            values.append(stored[where])
        first += len(bits)
    indices = np.concatenate(places) if places else np.empty(0, np.int64)
    missed = SetEntries(indices, Bits(dtype, np.concatenate(values) if values else np.empty(0, dtype.bits)))
    norm = math.sqrt(squares[0] / squares[1]) if squares[1] > 0 else None
    return Trace(before.hexdigest(), after.hexdigest(), missed, norm)


def _missed(stored: np.ndarray, bits: np.ndarray, change: Change, dtype: Dtype, first: int) -> np.ndarray:
    """Places of a run, int64, where undoing gives other bits than were stored."""
    inverse, touched = change.inverse(), change.touched()
    if inverse is None and touched is not None:
        begin, end = np.searchsorted(touched, (first, first + len(bits)))
        return touched[begin:end] - first
    undone = bits.copy()
    if inverse is not None:
        inverse.change(undone, dtype, first)
    return np.flatnonzero(undone != stored).astype(np.int64)


def _squares(dtype: Dtype, stored: np.ndarray, bits: np.ndarray, name: WeightId) -> np.ndarray:
    """Sums of squares of the change and of the tensor over a run, [2]."""
    old, new = dtype.doubles(stored), dtype.doubles(bits)
    if not np.isfinite(new[np.isfinite(old)]).all():
        raise InvalidResult(f"{name}: the edited values do not fit into {dtype.name}")
    return np.array([np.square(new - old).sum(), np.square(old).sum()])
