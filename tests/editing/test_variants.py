"""The variants of the UWM score: against slow loops on uneven data, under both rules, and their theorems."""

from __future__ import annotations

import pytest
import torch
from reference.slow_selection import slow_top_fraction, slow_top_mass
from reference.slow_uwm import uwm_score
from uneven_pairs import IN, OUT, PAIRS, fast, make_inputs, statistics, tokens

from uwm.editing.entries.editor import RULES, VARIANTS
from uwm.editing.entries.selection import SELECTORS, top_mass
from uwm.editing.entries.uwm import UwmScorer
from uwm.errors import BadInput, InvalidResult
from uwm.statistics.channel_norms import TokenStatistics
from uwm.weights import WeightId

OTHERS = [variant for variant in VARIANTS if variant != "ratio"]
UNPAIRED = ("ratio-of-means", "unsafe-only")
TOWERS = ("text", "vision")


def slow(sides, lengths, weight, tower, variant):
    return torch.tensor(uwm_score(*map(tokens, sides, lengths), weight.tolist(), tower, variant), dtype=torch.float64)


def take(inputs, safe, unsafe):
    """The same inputs with these rows of each side."""
    sides, lengths, weight = inputs
    return [sides[0][safe], sides[1][unsafe]], [lengths[0][safe], lengths[1][unsafe]], weight


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("variant", OTHERS)
@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("batch", [1, 4, PAIRS])
def test_equals_the_slow_form(tower, variant, odd, batch):
    inputs = make_inputs(1, odd)
    found = fast(*inputs, tower, batch, variant).scores()
    torch.testing.assert_close(found, slow(*inputs, tower, variant).float(), rtol=2e-5, atol=1e-6)
    assert (found > 0).any()


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("share", [0.05, 0.3])
def test_selects_what_the_slow_form_selects(tower, variant, rule, share):
    inputs = make_inputs(5, odd=False)
    scores = slow(*inputs, tower, variant)
    if rule == "top-mass":
        expected = slow_top_mass(scores, share)
    else:
        expected = slow_top_fraction(scores, int((1 - share) * scores.numel()))
    assert SELECTORS[rule](fast(*inputs, tower, 4, variant).scores(), share).tolist() == expected


@pytest.mark.parametrize("tower", TOWERS)
def test_no_two_variants_are_the_same(tower):
    inputs = make_inputs(2, odd=False)
    scores = [fast(*inputs, tower, 4, variant).scores() for variant in VARIANTS]
    shares = [(score / score.sum()).flatten() for score in scores]
    distances = torch.cdist(torch.stack(shares), torch.stack(shares))
    assert (distances + torch.eye(len(VARIANTS)) > 0.005).all(), distances


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("tower", TOWERS)
def test_order_and_doubling_do_not_matter(variant, tower):
    inputs = make_inputs(3, odd=True)
    straight = fast(*inputs, tower, 4, variant).scores()
    order = torch.randperm(PAIRS, generator=torch.Generator().manual_seed(0))
    for rows in (order, torch.cat([order, order])):
        found = fast(*take(inputs, rows, rows), tower, 4, variant).scores()
        torch.testing.assert_close(found, straight, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_who_belongs_to_whom_matters_only_where_pairs_are_compared(variant):
    inputs, everyone = make_inputs(3, odd=False), torch.arange(PAIRS)
    straight = fast(*inputs, "vision", 4, variant).scores()
    turned = fast(*take(inputs, everyone, everyone.flip(0)), "vision", 4, variant).scores()
    same = torch.allclose(turned, straight, rtol=1e-6)
    assert same == (variant != "ratio")  # a mean of differences is a difference of means, where nothing is silent


@pytest.mark.parametrize("variant", UNPAIRED)
@pytest.mark.parametrize("tower", TOWERS)
def test_sides_of_different_length_need_no_pairs(variant, tower):
    inputs = take(make_inputs(4, odd=True), torch.arange(7), torch.arange(2, PAIRS).repeat(2))
    found = fast(*inputs, tower, 3, variant).scores()
    torch.testing.assert_close(found, slow(*inputs, tower, variant).float(), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant not in UNPAIRED])
@pytest.mark.parametrize("safe", [1, 7])
def test_pairs_that_are_none_are_refused(variant, safe):
    inputs = take(make_inputs(4, odd=False), torch.arange(safe), torch.arange(PAIRS))
    with pytest.raises(BadInput, match=rf"{safe} safe and {PAIRS} unsafe samples; the variant {variant} compares"):
        fast(*inputs, "vision", PAIRS, variant)


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("pair", range(PAIRS))
def test_of_one_pair_the_ratio_of_means_is_the_ratio(tower, pair):
    one = take(make_inputs(1, odd=True), [pair], [pair])
    ratio, of_means = (fast(*one, tower, 1, variant).scores() for variant in ("ratio", "ratio-of-means"))
    torch.testing.assert_close(of_means, ratio, rtol=1e-6, atol=0)


@pytest.mark.parametrize("tower", TOWERS)
def test_swapped_sides_turn_the_sign_of_the_difference(tower):
    sides, lengths, weight = make_inputs(6, odd=True)
    forward = fast(sides, lengths, weight, tower, 4, "difference").scores()
    backward = fast(sides[::-1], lengths[::-1], weight, tower, 4, "difference").scores()
    zero = weight == 0
    silent = zero if tower == "text" else zero.all(0) | zero.all(1)[:, None]
    assert torch.equal((forward > 0) ^ (backward > 0), ~silent)
    assert not ((forward > 0) & (backward > 0)).any()
    assert (forward > 0).any()
    assert (backward > 0).any()


@pytest.mark.parametrize("tower", TOWERS)
def test_of_equal_sides_nothing_is_left_to_select(tower):
    sides, lengths, weight = make_inputs(4, odd=True)
    same = [sides[0], sides[0]], [lengths[0], lengths[0]], weight
    difference = fast(*same, tower, 4, "difference").scores()
    assert torch.equal(difference, torch.zeros(OUT, IN))
    with pytest.raises(InvalidResult, match="of a difference no unsafe content"):
        top_mass(difference, 0.1)
    prior = weight.abs() if tower == "text" else torch.ones(OUT, IN)
    torch.testing.assert_close(fast(*same, tower, 4, "ratio-of-means").scores(), prior)


def test_unsafe_only_does_not_look_at_the_safe_side():
    sides, lengths, weight = make_inputs(1, odd=True)
    usual = fast(sides, lengths, weight, "vision", PAIRS, "unsafe-only")
    nothing = torch.full((PAIRS, IN), float("nan"), dtype=torch.float64)
    blind = UwmScorer(WeightId("vision", 0, "fc2"), weight, "unsafe-only")
    blind.update(TokenStatistics(nothing, nothing, torch.zeros(PAIRS)), statistics(sides[1], lengths[1]))
    assert torch.equal(blind.scores(), usual.scores())
    assert blind.guards == usual.guards


def test_guards_count_pairs_or_the_samples_that_are_looked_at():
    inputs = make_inputs(1, odd=True)
    counted = {variant: tuple(fast(*inputs, "vision", 4, variant).guards.values()) for variant in VARIANTS}
    pairs = (1, 2 + IN, 1, 1, 1)  # one token, dead, constant; zero columns and rows of W
    assert counted == {
        "ratio": pairs,
        "difference": pairs,
        "unsafe-only": (1, 1 + IN, 1, 1, 1),
        "ratio-of-means": (1, 2 + 2 * IN, 1, 1, 1),  # pair 5 is dead on both sides
    }
