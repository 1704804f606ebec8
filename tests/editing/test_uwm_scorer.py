"""The rank-one form against the paper's loops, on uneven data with every odd case in it."""

from __future__ import annotations

import pytest
import torch
from reference.slow_uwm import uwm_score
from uneven_pairs import IN, OUT, PAIRS, fast, make_inputs, tokens


@pytest.mark.parametrize("tower", ["text", "vision"])
@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("batch", [1, 4, PAIRS])
def test_equals_the_slow_form(tower, odd, batch):
    sides, lengths, weight = make_inputs(1, odd)
    expected = torch.tensor(uwm_score(*map(tokens, sides, lengths), weight.tolist(), tower))
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
        "dead_channels": 2 + dead_everywhere,
        "constant_channels": 1,
        "zero_columns": 1,
        "zero_rows": 1,
    }
    assert not any(fast(*make_inputs(1, odd=False), "vision", 4).guards.values())
