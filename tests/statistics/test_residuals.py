"""Residual streams: means, and the steps to the safe partner, against loops over pairs and tokens."""

from __future__ import annotations

import pytest
import torch
from tiny_pooling import LastToken

import uwm
from uwm.errors import BadInput
from uwm.statistics.batches import pair_batches
from uwm.statistics.passes import RESIDUAL, SAFE, UNSAFE, Part, run_pass
from uwm.statistics.pooled import PooledToken
from uwm.statistics.residuals import ResidualMeans, ResidualShifts
from uwm.weights import WeightId

FC2, STREAM = WeightId("text", 1, "fc2"), WeightId("text", 1, RESIDUAL)
PAIRS, TOKENS, IN, WIDTH = 7, (6, 5), 4, 3  # the safe side is padded to another length
PLAIN, HOLES = "ends with padding", "a counted token after the padding"


def make(layout=PLAIN):
    """Inputs, streams and masks of both sides, [pairs, tokens, …]; what does not count is huge."""
    generator = torch.Generator().manual_seed(0)
    inputs, streams, masks = [], [], []
    for tokens in TOKENS:
        lengths = torch.randint(1, tokens, (PAIRS,), generator=generator)
        mask = (torch.arange(tokens) < lengths[:, None]).long()
        if layout == HOLES:
            mask[:, -1] = 1
        drift = torch.linspace(-4, 9, PAIRS)[:, None, None]
        for found, width in ((inputs, IN), (streams, WIDTH)):
            x = torch.randn(PAIRS, tokens, width, generator=generator) + drift
            x[mask == 0] = 1e4
            found.append(x)
        masks.append(mask)
    return inputs, streams, masks


def feed(reducer, data, size, sides=(SAFE, UNSAFE), order=None):
    inputs, streams, masks = data
    order = torch.arange(PAIRS) if order is None else order
    for start in range(0, PAIRS, size):
        rows = order[start : start + size]
        for side in sides:
            for weight, found in ((FC2, inputs), (STREAM, streams)):
                if weight in reducer.layers("text"):
                    reducer.take(weight, side, found[side][rows], masks[side][rows])
        reducer.update(Part("text", start, tuple(torch.zeros(len(rows), 2) for _ in sides)))
    return reducer


def slow_shifts(data, pooled):
    """(unsafe inputs, steps) token by token: the k-th to the k-th, the last to the last, the rest to the last."""
    inputs, streams, masks = data
    rows, steps = [], []
    for pair in range(PAIRS):
        safe, unsafe = (masks[side][pair].nonzero().flatten().tolist() for side in (SAFE, UNSAFE))
        for k, token in enumerate(unsafe):
            last = k == len(unsafe) - 1
            if pooled and not last:
                continue
            partner = safe[-1] if last or k >= len(safe) else safe[k]
            rows.append(inputs[UNSAFE][pair, token].double())
            steps.append(streams[SAFE][pair, partner].double() - streams[UNSAFE][pair, token].double())
    return torch.stack(rows), torch.stack(steps)


@pytest.mark.parametrize("size", [1, 4, PAIRS])
@pytest.mark.parametrize("layout", [PLAIN, HOLES])
@pytest.mark.parametrize("pooled", [False, True])
def test_shifts_equal_the_loops(size, layout, pooled):
    data = make(layout)
    reducer = feed(ResidualShifts([FC2], PooledToken(LastToken()) if pooled else None), data, size)
    rows, steps = slow_shifts(data, pooled)
    unsafe = reducer.unsafe[FC2]
    assert unsafe.count == len(rows)
    torch.testing.assert_close(unsafe.second, rows.T @ rows)
    torch.testing.assert_close(unsafe.cross, rows.T @ steps)
    inputs, _, masks = data
    last = (masks[SAFE] * torch.arange(TOKENS[SAFE])).argmax(1)
    safe = inputs[SAFE][torch.arange(PAIRS), last] if pooled else inputs[SAFE][masks[SAFE].bool()]
    torch.testing.assert_close(reducer.safe[FC2].second, safe.double().T @ safe.double())


def test_order_of_pairs_does_not_matter():
    data = make()
    straight = feed(ResidualShifts([FC2]), data, 4)
    order = torch.randperm(PAIRS, generator=torch.Generator().manual_seed(1))
    shuffled = feed(ResidualShifts([FC2]), data, 4, order=order)
    torch.testing.assert_close(shuffled.unsafe[FC2].cross, straight.unsafe[FC2].cross)


def test_a_preservation_set_adds_to_the_safe_side_only():
    reducer = feed(ResidualShifts([FC2]), make(), 4, sides=[SAFE])
    assert reducer.unsafe[FC2].count == 0
    assert reducer.safe[FC2].count > 0
    assert not reducer._streams


def test_sides_of_different_length_are_no_pairs():
    reducer, (inputs, streams, masks) = ResidualShifts([FC2]), make()
    reducer.take(STREAM, SAFE, streams[SAFE][:3], masks[SAFE][:3])
    reducer.take(FC2, UNSAFE, inputs[UNSAFE], masks[UNSAFE])
    with pytest.raises(BadInput, match=r"text\.1\.residual: 3 safe and 7 unsafe samples"):
        reducer.take(STREAM, UNSAFE, streams[UNSAFE], masks[UNSAFE])


@pytest.mark.parametrize("size", [1, 4, PAIRS])
@pytest.mark.parametrize("pooled", [False, True])
def test_means_equal_the_whole(size, pooled):
    data = make()
    _, streams, masks = data
    rows = {"rows": PooledToken(LastToken())} if pooled else {}
    reducer = feed(ResidualMeans([("text", 1)], **rows), data, size)
    assert reducer.layers("vision") == []
    for side in (SAFE, UNSAFE):
        last = (masks[side] * torch.arange(TOKENS[side])).argmax(1)
        kept = streams[side][torch.arange(PAIRS), last] if pooled else streams[side][masks[side].bool()]
        torch.testing.assert_close(reducer.means["text", 1, side].mean, kept.double().mean(0))


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_in_a_real_model(tiny_hf, tiny_set, tower):
    """Both sides equal: no step; and what two matrices of one block share is counted once each."""
    model, calib = uwm.load(tiny_hf), uwm.read_calibration(tiny_set)
    weights = [WeightId(tower, 1, "fc2"), WeightId(tower, 1, "out_proj"), WeightId(tower, 0, "fc2")]
    reducer, means = ResidualShifts(weights), ResidualMeans([(tower, 0), (tower, 1)])
    run_pass(model, pair_batches(model, calib, batch_size=10, towers=[tower]), [reducer, means], [tower])
    rows = means.means[tower, 1, UNSAFE].count
    assert rows > 24
    assert {reducer.unsafe[weight].count for weight in weights} == {rows}
    assert all(reducer.unsafe[weight].cross.abs().max() > 0 for weight in weights)
    assert not torch.allclose(means.means[tower, 0, SAFE].mean, means.means[tower, 1, SAFE].mean)
    assert not reducer._inputs
    assert not reducer._streams
