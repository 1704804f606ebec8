"""The rank-one form against the paper's loops, on uneven data with every odd case in it."""

from __future__ import annotations

import pytest
import torch
from reference.slow_uwm import uwm_score
from uneven_pairs import IN, OUT, PAIRS, fast, make_inputs, tokens

from uwm.editing.entries import uwm as uwm_module
from uwm.editing.entries.editor import VARIANTS
from uwm.editing.entries.uwm import UwmScorer
from uwm.statistics.channel_norms import TokenStatistics
from uwm.weights import WeightId


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


def test_f47_guards_are_counted():
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


def drawn(pairs, seed=0, out=70, width=30):
    """Statistics of both sides and a weight, larger than what waits to be added and than a block of rows."""
    generator = torch.Generator().manual_seed(seed)
    sides = []
    for _ in range(2):
        norm, std = (torch.rand(pairs, width, generator=generator, dtype=torch.float64) + 0.1 for _ in range(2))
        sides.append(TokenStatistics(norm, std, torch.full((pairs,), 9)))
    return sides, torch.randn(out, width, generator=generator)


def scored(sides, weight, sizes, variant="ratio", tower="text"):
    scorer, start = UwmScorer(WeightId(tower, 0, "fc2"), weight, variant), 0
    for size in sizes:
        rows = slice(start, start + size)
        scorer.update(*(TokenStatistics(s.norm[rows], s.std[rows], s.tokens[rows]) for s in sides))
        start += size
    return scorer


@pytest.mark.parametrize("variant", VARIANTS)
def test_f50_the_same_pairs_in_any_batches_give_the_same_bits(variant):
    sides, weight = drawn(60)
    whole = scored(sides, weight, [60], variant).scores()
    for sizes in ([1] * 60, [7] * 8 + [4], [12] * 5, [50, 10]):
        assert torch.equal(scored(sides, weight, sizes, variant).scores(), whole)


def test_blocks_of_rows_make_no_difference(monkeypatch):
    sides, weight = drawn(40)
    sides[0].norm[3, 4] = sides[0].std[3, 4] = 0  # a neutral case in one column
    weight[5] = 0  # and in one row
    whole = scored(sides, weight, [40]).scores()
    monkeypatch.setattr(uwm_module, "BLOCK", 32)
    torch.testing.assert_close(scored(sides, weight, [40]).scores(), whole, rtol=1e-6, atol=0)


def test_float32_sums_of_many_pairs_are_close_to_float64():
    """Sums of 10,000 pairs against the mean of the ratios written out in float64."""
    sides, weight = drawn(10_000, out=6, width=5)
    magnitude = weight.double().abs()
    a_safe, a_unsafe = (side.norm @ magnitude.T for side in sides)
    b_safe, b_unsafe = (side.norm / (side.std + 1e-8) for side in sides)
    expected = (a_unsafe / a_safe).T @ (b_unsafe / b_safe) / 10_000
    scorer = scored(sides, weight, [10_000], tower="vision")
    torch.testing.assert_close(scorer.scores().double(), expected, rtol=3e-6, atol=0)


def test_reduced_precision_of_the_caller_does_not_reach_the_scores():
    sides, weight = drawn(20)
    expected = scored(sides, weight, [20]).scores()
    with torch.autocast("cpu", torch.bfloat16):
        found = scored(sides, weight, [20]).scores()
    assert torch.equal(found, expected)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        torch.testing.assert_close(scored(sides, weight, [20]).scores(), expected, rtol=1e-6, atol=0)
        assert scored(sides, weight, [20])._dtype == torch.float64
    finally:
        torch.set_float32_matmul_precision(before)


def test_scores_can_be_asked_for_again_but_nothing_added_to_them():
    sides, weight = drawn(20)
    scorer = scored(sides, weight, [20])
    first = scorer.scores().clone()
    assert torch.equal(scorer.scores(), first)
    with pytest.raises(AssertionError, match="nothing can be added"):
        scorer.update(*sides)


def test_what_is_kept_besides_the_sums_is_a_twentieth_of_them():
    """At the sizes of ViT-L/14, however many pairs come."""
    scorer = UwmScorer(WeightId("vision", 0, "fc2"), torch.zeros(1024, 4096))
    kept = scorer._waiting._kept
    assert scorer._main._sum.dtype == kept.dtype == torch.float32
    assert kept.nbytes <= 0.05 * scorer._main._sum.nbytes
