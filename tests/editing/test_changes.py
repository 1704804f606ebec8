"""Changes of one tensor: the same bits whatever the run, undone by the inverse and what it missed, random controls."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from random_patches import applied, scale
from tiny_files import BITS, bits

from uwm.checkpoint.dtypes import Bits, dtype_of
from uwm.editing.changes import KINDS, AddLowRank, Chain, Scale, SetEntries

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SHAPE = (5, 7)


def sign(dtype):
    return torch.iinfo(BITS[dtype.itemsize]).min


def change_of(kind, seed=0, shape=SHAPE):
    rng = np.random.default_rng(seed)
    indices = np.sort(rng.permutation(shape[0] * shape[1])[:6]).astype(np.int64)
    return {
        "negate": lambda: Scale(indices),
        "halve": lambda: Scale(indices, 0.5),
        "zero": lambda: Scale(indices, 0.0),
        "set": lambda: SetEntries.of(indices, rng.standard_normal(6)),
        "add": lambda: AddLowRank.of(rng.standard_normal((shape[0], 2)), rng.standard_normal((shape[1], 2))),
    }[kind]()


EVERY = ("negate", "halve", "zero", "set", "add")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [1, 7, 32, 63])
def test_f52_minus_one_flips_the_sign_bit_of_every_kind_of_value(dtype, size):
    info = torch.finfo(dtype)
    values = torch.tensor([0.0, -0.0, info.max, -info.tiny, info.smallest_normal / 2, float("inf"), float("nan")])
    before = values.to(torch.float64).to(dtype).repeat(9)[-size:].clone()
    quiet_nan = before.isnan()
    bits(before)[quiet_nan] |= 1  # NaN with something in it
    after = applied(scale(range(size)), before)
    assert torch.equal(bits(before) ^ bits(after), torch.full((size,), sign(dtype), dtype=BITS[dtype.itemsize]))


@pytest.mark.parametrize("dtype", FLOATS)
def test_another_alpha_scales_and_values_replace(dtype):
    before = torch.tensor([1.0, -3.0, 5.0, -0.0], dtype=dtype)
    assert applied(scale([1, 2], 0.5), before).tolist() == [1.0, -1.5, 2.5, 0.0]
    gone = applied(scale([0, 1], 0.0), before)
    back = applied(SetEntries(np.arange(2), Bits.of(before[:2])), gone)
    assert gone.tolist() == [0.0, 0.0, 5.0, 0.0]
    assert torch.equal(bits(back), bits(before))


def test_a_scaled_value_is_rounded_once_to_the_stored_type():
    value = torch.tensor([1.0009765625], dtype=torch.float16)  # 1 + 2^-10
    assert applied(scale([0], 1 / 3), value).item() == (value.double() / 3).half().item()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("run", [1, 4, 7, 11])
def test_any_run_of_values_gives_the_same_bits(dtype, kind, run):
    before, change = torch.randn(SHAPE, dtype=torch.float64).to(dtype), change_of(kind)
    pieces = Bits.of(before.clone())
    flat = pieces.array.reshape(-1)
    for first in range(0, flat.size, run):
        change.change(flat[first : first + run], pieces.dtype, first)
    assert torch.equal(bits(pieces.torch()), bits(applied(change, before)))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", EVERY)
def test_the_inverse_and_what_it_missed_give_every_bit_back(dtype, kind):
    before, change = (100 * torch.randn(SHAPE, dtype=torch.float64)).to(dtype), change_of(kind)
    after = applied(change, before)
    inverse = change.inverse()
    undone = after if inverse is None else applied(inverse, after)
    where = (bits(undone) != bits(before)).flatten().nonzero().flatten()
    assert (kind == "negate") <= (len(where) == 0)
    missed = SetEntries(where.numpy(), Bits.of(before.flatten()[where]))
    back = applied(Chain([step for step in (inverse, missed) if step is not None]), after)
    assert torch.equal(bits(back), bits(before))


def test_a_low_rank_change_is_the_sum_in_double_rounded_once():
    change = change_of("add")
    for dtype in FLOATS:
        before = torch.randn(SHAPE, dtype=torch.float64).to(dtype)
        after = applied(change, before)
        for i in range(SHAPE[0]):
            for j in range(SHAPE[1]):
                added = sum(float(change.left[i, k]) * float(change.right[j, k]) for k in range(2))
                exact = np.float64(before[i, j].double().item() + added)
                assert after[i, j].double().item() == Bits(dtype_of(dtype), rounded_slowly(exact, dtype)).torch().item()


def rounded_slowly(value, dtype):
    """The nearest value of the type, of two equally near ones the even: by looking at neighbours."""
    numbers = dtype_of(dtype)
    if dtype != torch.bfloat16:
        return np.array(value).astype(str(dtype).removeprefix("torch.")).view(numbers.bits)
    with np.errstate(over="ignore"):
        low = int(np.array(value, np.float32).view(np.uint32) >> 16)
    near = [np.array(raw, np.uint16) for raw in (low - 1, low, low + 1) if 0 <= raw & 0x7FFF <= 0x7F80]

    def number(raw):  # where the next value would be if there were no infinity
        found = float(numbers.doubles(raw))
        return math.copysign(2.0**128, found) if math.isinf(found) else found

    return min(near, key=lambda raw: (abs(number(raw) - value), int(raw) & 1))


def test_doubles_round_once_to_bfloat16_also_next_to_a_tie():
    numbers = dtype_of(torch.bfloat16)
    ties = [1 + 2**-8, 1 + 2**-8 + 2**-40, 1 + 2**-8 - 2**-40, 1 + 3 * 2**-8, -1 - 2**-8 - 2**-40, 3e38, -3.4e38, 1e-41]
    values = np.array([*ties, *(np.random.default_rng(0).standard_normal(2000) * 1e-3)])
    found = numbers.rounded(values)
    assert [int(raw) for raw in found] == [int(rounded_slowly(value, torch.bfloat16)) for value in values]
    special = numbers.rounded(np.array([np.inf, -np.inf, np.nan, 0.0, -0.0]))
    assert Bits(numbers, special).torch().isnan().tolist() == [False, False, True, False, False]
    assert [hex(raw) for raw in special[[0, 1, 3, 4]]] == ["0x7f80", "0xff80", "0x0", "0x8000"]


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_value_of_a_type_survives_the_way_through_doubles(dtype):
    numbers = dtype_of(dtype)
    raw = torch.randn(1000).to(dtype) if dtype.itemsize > 2 else torch.arange(-(2**15), 2**15).short().view(dtype)
    raw = raw[~raw.isnan()]
    stored = Bits.of(raw).array
    assert np.array_equal(numbers.rounded(numbers.doubles(stored)), stored)


@pytest.mark.parametrize("kind", EVERY)
def test_a_change_is_stored_and_read_back(kind):
    change = change_of(kind)
    read = KINDS[change.kind].read(*change.stored())
    before = torch.randn(SHAPE)
    assert torch.equal(applied(read, before), applied(change, before))
    assert read.summary(SHAPE) == change.summary(SHAPE)


@pytest.mark.parametrize("kind", EVERY)
def test_a_change_knows_the_shapes_that_it_fits(kind):
    change = change_of(kind)
    assert change.fits(SHAPE)
    assert not change.fits((2, 2))
    below = np.array([1, np.iinfo(np.int64).min])  # a difference of the two overflows
    for spoilt in (np.array([3, 3]), below, np.array([-1, 0]), np.array([1.0, 2.0]), np.array([[1, 2]])):
        assert not Scale(spoilt).fits(SHAPE)
        assert not SetEntries(spoilt, Bits.of(np.zeros(2))).fits(SHAPE)
    assert not SetEntries(np.arange(3), Bits.of(np.zeros(2))).fits(SHAPE)
    assert not AddLowRank.of(np.full((5, 1), np.nan), np.ones((7, 1))).fits(SHAPE)


def test_entries_are_set_in_any_order():
    values = applied(SetEntries.of([4, 1], [0.5, 2.0]), torch.zeros(6))
    assert values.tolist() == [0.0, 2.0, 0.0, 0.0, 0.5, 0.0]


@pytest.mark.parametrize("kind", EVERY)
def test_the_random_control_is_of_equal_kind_and_size_and_not_the_same(kind):
    change = change_of(kind)
    control, again, other = (change.random(SHAPE, seed) for seed in (1, 1, 2))
    before = torch.randn(SHAPE)
    assert control.fits(SHAPE)
    assert control.summary(SHAPE) == change.summary(SHAPE)
    assert torch.equal(applied(control, before), applied(again, before))
    assert not torch.equal(applied(control, before), applied(other, before))
    assert not torch.equal(applied(control, before), applied(change, before))
    if kind == "add":
        sizes = [(applied(c, before.double()) - before.double()).norm().item() for c in (change, control)]
        assert sizes[0] == pytest.approx(sizes[1], rel=1e-9)
    if kind == "set":
        assert sorted(control.values.array.tolist()) == sorted(change.values.array.tolist())
