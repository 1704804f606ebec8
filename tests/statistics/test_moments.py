"""Streamed moments against those of the whole, on uneven batches whose means drift."""

from __future__ import annotations

import pytest
import torch

from uwm.statistics.moments import InputMoments, Mean, Moments, counted_tokens
from uwm.statistics.passes import SAFE, UNSAFE
from uwm.weights import WeightId

FC2 = WeightId("text", 0, "fc2")
ROWS = 23


def drifting(width=4, seed=0):
    """Rows [ROWS, width], float32, whose means drift far against their spread."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, width, generator=generator) + torch.linspace(-300, 500, ROWS)[:, None]


def streamed(x, z, size):
    moments = Moments()
    for start in range(0, len(x), size):
        moments.add(x[start : start + size], None if z is None else z[start : start + size])
    return moments


def slow_sum(left, right):
    """Σ l rᵀ, a row at a time."""
    total = torch.zeros(left.shape[1], right.shape[1], dtype=torch.float64)
    for a, b in zip(left.double(), right.double(), strict=True):
        for i in range(len(a)):
            for j in range(len(b)):
                total[i, j] += a[i] * b[j]
    return total


@pytest.mark.parametrize("size", [1, 5, 22, ROWS])
def test_equals_the_slow_sums_whatever_the_batches(size):
    x, z = drifting(), drifting(3, seed=1)
    found = streamed(x, z, size)
    assert found.count == ROWS
    close = {"rtol": 1e-12, "atol": 1e-9}
    torch.testing.assert_close(found.sum, x.double().sum(0), **close)
    torch.testing.assert_close(found.mean, x.double().mean(0), **close)
    torch.testing.assert_close(found.target_mean, z.double().mean(0), **close)
    torch.testing.assert_close(found.second, slow_sum(x, x), **close)
    torch.testing.assert_close(found.cross, slow_sum(x, z), **close)
    shifted, other = x.double() - x.double().mean(0), z.double() - z.double().mean(0)
    torch.testing.assert_close(found.centred(), slow_sum(shifted, shifted) / ROWS, **close)
    torch.testing.assert_close(found.centred_cross(), slow_sum(shifted, other) / ROWS, **close)


def test_order_does_not_matter():
    x, z = drifting(), drifting(3, seed=1)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(2))
    straight, shuffled = streamed(x, z, 5), streamed(x[order], z[order], 5)
    torch.testing.assert_close(shuffled.second, straight.second, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(shuffled.cross, straight.cross, rtol=1e-12, atol=1e-9)


def test_a_mean_far_from_zero_costs_the_covariance_nothing():
    x = torch.randn(ROWS, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    near, far = streamed(x, None, 5).centred(), streamed(x + 1e8, None, 5).centred()
    torch.testing.assert_close(far, near, rtol=1e-6, atol=1e-6)
    assert (far.diagonal() > 0.1).all()


def test_empty_batches_and_no_targets():
    moments = streamed(drifting(), None, 5)
    before = moments.second
    moments.add(torch.empty(0, 4))
    assert torch.equal(moments.second, before)
    assert moments.cross.shape == (4, 0)
    assert Moments().count == 0


@pytest.mark.parametrize("size", [1, 5, ROWS])
def test_the_plain_mean(size):
    x, found = drifting(), Mean()
    for start in range(0, ROWS, size):
        found.add(x[start : start + size])
    torch.testing.assert_close(found.mean, x.double().mean(0), rtol=1e-13, atol=1e-11)


@pytest.mark.parametrize("size", [1, 4, 7])
def test_inputs_are_reduced_over_the_tokens_that_count(size):
    generator = torch.Generator().manual_seed(3)
    sides = [torch.randn(7, 5, 3, generator=generator) + 9 * side for side in (1, 2)]
    lengths = torch.randint(1, 6, (2, 7), generator=generator)
    masks = [(torch.arange(5) < n[:, None]).long() for n in lengths]
    for x, mask in zip(sides, masks, strict=True):
        x[mask == 0] = 1e6  # padding
    reducer = InputMoments([FC2])
    assert reducer.layers("text") == [FC2]
    assert reducer.layers("vision") == []
    for start in range(0, 7, size):
        for side in (SAFE, UNSAFE):
            rows = slice(start, start + size)
            reducer.take(FC2, side, sides[side][rows], masks[side][rows])
    for side in (SAFE, UNSAFE):
        kept = torch.cat([x[:n] for x, n in zip(sides[side], lengths[side].tolist(), strict=True)])
        found = reducer.moments[FC2, side]
        assert found.count == len(kept)
        torch.testing.assert_close(found.second, slow_sum(kept, kept), rtol=1e-12, atol=1e-9)


def test_without_a_mask_all_tokens_count():
    assert counted_tokens(FC2, torch.ones(2, 3, 4), None).shape == (6, 4)
