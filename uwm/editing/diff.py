"""Which entries differ between two checkpoints of one layout."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.dtypes import Bits
from ..checkpoint.reader import CHUNK, same_bytes
from ..errors import BadInput
from ..models.references import resolve
from .files import HASHERS


def diff(first: str | Path, second: str | Path, key: str | None = None) -> dict[str, dict[str, int]]:
    """Which tensors differ between two checkpoints of one layout (`key`: which entry of training checkpoints).

    Returns:
        Tensor name -> {"differ": entries that differ, "negated": of those exactly −1×, "of": all}; equal ones left out.

    Raises:
        BadInput: They do not hold the same tensor names and shapes.
    """
    sides = open_checkpoint(resolve(first), key), open_checkpoint(resolve(second), key)
    shapes = [side.shapes() for side in sides]
    if odd := sorted(shapes[0].keys() ^ shapes[1].keys()):
        raise BadInput(f"{first} and {second} hold different tensors, such as {', '.join(odd[:5])}")
    for name in sorted(shapes[0]):
        if shapes[0][name] != shapes[1][name]:
            raise BadInput(f"{name} is {list(shapes[0][name])} in {first} and {list(shapes[1][name])} in {second}")
    with ThreadPoolExecutor(HASHERS) as pool:
        counts = zip(sorted(shapes[0]), pool.map(lambda name: _count(*sides, name), sorted(shapes[0])), strict=True)
        return {name: count for name, count in counts if count["differ"]}


def _count(first: Checkpoint, second: Checkpoint, name: str) -> dict[str, int]:
    """How many values differ, −0 from 0 and NaN by its bits too, and how many of those are exactly −1×."""
    differ = negated = 0
    for a, b in _side_by_side(first, second, name):
        odd = a.array != b.array
        differ += int(odd.sum())
        negated += int((odd & a.dtype.are_negated(a.array, b.array)).sum())
    return {"differ": differ, "negated": negated, "of": math.prod(first.entries[name][1].shape)}


def _side_by_side(first: Checkpoint, second: Checkpoint, name: str) -> Iterator[tuple[Bits, Bits]]:
    """One tensor of both in pieces, in one dtype; pieces that are equal bit for bit are left out."""
    dtype, other = (side.entries[name][1].dtype for side in (first, second))
    if dtype != other:
        flat = [side.bits(name).torch().reshape(-1) for side in (first, second)]
        for begin in range(0, len(flat[0]), CHUNK):
            a, b = (Bits.of(values[begin : begin + CHUNK].double() + 0.0) for values in flat)  # + 0.0: one zero of both
            yield a, b
        return
    for pair in zip(first.raw_chunks(name), second.raw_chunks(name), strict=True):
        if not same_bytes(*pair):
            a, b = (Bits(dtype, raw.view(dtype.bits)) for raw in pair)
            yield a, b
