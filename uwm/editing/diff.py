"""Which entries differ between two checkpoints, also where their key layouts are transformers' and open_clip's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.dtypes import Bits
from ..checkpoint.reader import CHUNK, same_bytes
from ..errors import BadInput
from ..models.references import resolve
from .files import HASHERS

Shapes = Mapping[str, tuple[int, ...]]


def diff(first: str | Path, second: str | Path, key: str | None = None) -> dict[str, dict[str, int]]:
    """Which tensors differ between two checkpoints (`key`: which entry of training checkpoints).

    A plain CLIP in transformers' key layout and one in open_clip's are compared under the names of the first.

    Returns:
        Tensor name -> {"differ": entries that differ, "negated": of those exactly −1×, "of": all}; equal ones left out.
        Of a type whose values are smaller than a byte, bytes are counted.

    Raises:
        BadInput: They do not hold the same tensors and shapes, or one of them holds such values in another type.
    """
    sides = open_checkpoint(resolve(first), key), open_checkpoint(resolve(second), key)
    if sides[0].shapes().keys() != sides[1].shapes().keys() and (to := _across(*sides)):
        return _diff_across(*sides, to)
    shapes = [side.shapes() for side in sides]
    _same_shapes(first, second, *shapes)
    with ThreadPoolExecutor(HASHERS) as pool:
        pieces = pool.map(lambda name: _count(_side_by_side(*sides, name), _entries(sides[0], name)), sorted(shapes[0]))
        return {name: count for name, count in zip(sorted(shapes[0]), pieces, strict=True) if count["differ"]}


def _same_shapes(first: str | Path, second: str | Path, one: Shapes, other: Shapes) -> None:
    if odd := sorted(one.keys() ^ other.keys()):
        raise BadInput(f"{first} and {second} hold different tensors, such as {', '.join(odd[:5])}")
    for name in sorted(one):
        if one[name] != other[name]:
            raise BadInput(f"{name} is {list(one[name])} in {first} and {list(other[name])} in {second}")


def _across(first: Checkpoint, second: Checkpoint) -> str | None:
    """The key layout of the first, as conversions call it, where the second has the other one of the two."""
    families = [{tower.encoder.family for tower in side.layout.towers} for side in (first, second)]
    if families == [{"hf-clip"}, {"open_clip"}]:
        return "hf"
    return "open_clip" if families == [{"open_clip"}, {"hf-clip"}] else None


def _diff_across(first: Checkpoint, second: Checkpoint, to: str) -> dict[str, dict[str, int]]:
    """As `diff`, of two key layouts: the second is converted tensor by tensor."""
    from ..models.conversion import converted, plain_clip  # torch

    try:
        others = dict(converted(second, plain_clip(second, to), to))
    except BadInput as error:
        raise BadInput(f"{first.path} and {second.path} have different key layouts, and only plain CLIPs are compared "
                       f"across them: {error}") from None  # fmt: skip
    shapes = {name: shape for name, shape in first.shapes().items() if not name.endswith("position_ids")}
    shapes |= {"logit_scale": ()} if math.prod(shapes.get("logit_scale", (0,))) == 1 else {}  # open_clip's may be [1]
    other_shapes = {name: tuple(shape) for name, (_, shape, _) in others.items()}
    other_shapes |= {"logit_scale": ()} if math.prod(other_shapes.get("logit_scale", (0,))) == 1 else {}
    _same_shapes(first.path, second.path, shapes, other_shapes)
    counts = {
        name: _count(_flat_pieces(_as_values(first, name), Bits.of(others[name][2]())), _entries(first, name))
        for name in sorted(shapes)
    }
    return {name: count for name, count in counts.items() if count["differ"]}


def _entries(checkpoint: Checkpoint, name: str) -> int:
    """Of a tensor; its bytes where values are smaller than one."""
    info = checkpoint.entries[name][1]
    return info.nbytes if info.dtype.values > 1 else math.prod(info.shape)


def _as_values(checkpoint: Checkpoint, name: str) -> Bits:
    """A tensor that is compared with one of another type or key layout. Raises BadInput where it has only bytes."""
    bits = checkpoint.bits(name)
    if bits.dtype.values > 1:
        raise BadInput(f"{checkpoint.path}: {name} is {bits.dtype.name}, which is only compared with its own type")
    return bits


def _flat_pieces(*tensors: Bits) -> Iterator[tuple[Bits, Bits]]:
    """Two tensors of one size in pieces, in one dtype."""
    one, other = tensors
    if one.dtype == other.dtype:
        yield Bits(one.dtype, one.array.reshape(-1)), Bits(other.dtype, other.array.reshape(-1))
        return
    flat = [bits.torch().reshape(-1) for bits in tensors]
    for begin in range(0, len(flat[0]), CHUNK):
        a, b = (Bits.of(values[begin : begin + CHUNK].double() + 0.0) for values in flat)  # + 0.0: one zero of both
        yield a, b


def _count(pieces: Iterator[tuple[Bits, Bits]], entries: int) -> dict[str, int]:
    """How many values differ, −0 from 0 and NaN by its bits too, and how many of those are exactly −1×."""
    differ = negated = 0
    for a, b in pieces:
        odd = a.array != b.array
        differ += int(odd.sum())
        negated += int((odd & a.dtype.are_negated(a.array, b.array)).sum())
    return {"differ": differ, "negated": negated, "of": entries}


def _side_by_side(first: Checkpoint, second: Checkpoint, name: str) -> Iterator[tuple[Bits, Bits]]:
    """One tensor of both in pieces, in one dtype; pieces that are equal bit for bit are left out."""
    dtype, other = (side.entries[name][1].dtype for side in (first, second))
    if dtype != other:
        yield from _flat_pieces(_as_values(first, name), _as_values(second, name))
        return
    for pair in zip(first.raw_chunks(name), second.raw_chunks(name), strict=True):
        if not same_bytes(*pair):
            a, b = (Bits(dtype, raw.view(dtype.bits)) for raw in pair)
            yield a, b
