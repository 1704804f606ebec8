"""The rank-one form against the paper's loops, on uneven data with every odd case in it."""

from __future__ import annotations

import pytest
import torch
from reference.slow_uwm import uwm_score

from uwm.profiler import token_statistics
from uwm.scorers import UwmScorer
from uwm.weights import WeightId

OUT, IN, TOKENS, PAIRS = 5, 7, 6, 9


def make_inputs(seed: int, odd: bool):
    """Inputs [pairs, tokens, in] of both sides, lengths [pairs] of both, W; means and scales drift over the pairs."""
    generator = torch.Generator().manual_seed(seed)
    drift = torch.linspace(0.1, 5, PAIRS)[:, None, None]
    sides = [torch.randn(PAIRS, TOKENS, IN, generator=generator) * drift + 3 * drift for _ in range(2)]
    lengths = [torch.randint(2, TOKENS + 1, (PAIRS,), generator=generator) for _ in range(2)]
    weight = torch.randn(OUT, IN, generator=generator)
    if odd:
        sides[0][2, :, 3] = 0  # dead on the safe side
        sides[1][4, :, 1] = 0.7  # constant on the unsafe side
        sides[0][5], sides[1][5] = 0, 0  # nothing at all
        lengths[1][6] = 1  # one token
        weight[:, 5] = 0
        weight[3, :] = 0
    return sides, lengths, weight


def fast(sides, lengths, weight, tower, batch):
    scorer = UwmScorer(WeightId(tower, 0, "fc2"), weight)
    for start in range(0, PAIRS, batch):
        rows = slice(start, start + batch)
        masks = [(torch.arange(TOKENS) < n[rows, None]).long() for n in lengths]
        scorer.update(*(token_statistics(x[rows], m) for x, m in zip(sides, masks, strict=True)))
    return scorer


@pytest.mark.parametrize("tower", ["text", "vision"])
@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("batch", [1, 4, PAIRS])
def test_equals_the_slow_form(tower, odd, batch):
    sides, lengths, weight = make_inputs(1, odd)
    pairs = [tuple(x[p, : n[p]].tolist() for x, n in zip(sides, lengths, strict=True)) for p in range(PAIRS)]
    expected = torch.tensor(uwm_score(pairs, weight.tolist(), tower))
    found = fast(sides, lengths, weight, tower, batch).scores()
    torch.testing.assert_close(found, expected.float(), rtol=2e-5, atol=0)


def test_padding_does_not_count():
    sides, lengths, weight = make_inputs(2, odd=False)
    dirty = [x.clone() for x in sides]
    for x, n in zip(dirty, lengths, strict=True):
        for p in range(PAIRS):
            x[p, n[p] :] = 99.0
    clean = fast(sides, lengths, weight, "text", 4).scores()
    assert torch.equal(fast(dirty, lengths, weight, "text", 4).scores(), clean)


def test_order_of_pairs_does_not_count_but_sides_do():
    sides, lengths, weight = make_inputs(3, odd=False)
    straight = fast(sides, lengths, weight, "vision", 4).scores()
    order = torch.randperm(PAIRS, generator=torch.Generator().manual_seed(0))
    shuffled = fast([x[order] for x in sides], [n[order] for n in lengths], weight, "vision", 4).scores()
    torch.testing.assert_close(shuffled, straight, rtol=1e-6, atol=0)
    swapped = fast(sides[::-1], lengths[::-1], weight, "vision", 4).scores()
    assert not torch.allclose(swapped, straight, rtol=0.1)


def test_identical_sides_score_one():
    sides, lengths, weight = make_inputs(4, odd=True)
    same = fast([sides[0], sides[0]], [lengths[0], lengths[0]], weight, "vision", 4).scores()
    torch.testing.assert_close(same, torch.ones(OUT, IN))


def test_guards_are_counted():
    guards = fast(*make_inputs(1, odd=True), "vision", 4).guards
    dead_everywhere = IN  # pair 5
    assert guards == {
        "one_token_pairs": 1,
        "dead_channels": 1 + dead_everywhere,
        "constant_channels": 1,
        "zero_columns": 1,
        "zero_rows": 1,
    }
    assert not any(fast(*make_inputs(1, odd=False), "vision", 4).guards.values())
