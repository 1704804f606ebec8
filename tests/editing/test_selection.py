"""Top mass and top fraction: by hand, against slow references, at ties and outside of their domain."""

from __future__ import annotations

import pytest
import torch
from reference.slow_selection import slow_top_fraction, slow_top_mass

from uwm.editing.entries.selection import SELECTORS, top_fraction, top_mass
from uwm.errors import BadInput, InvalidResult

BY_HAND = torch.tensor([[4.0, 1.0], [3.0, 2.0]])  # ascending cumulative shares: 0.1, 0.3, 0.6, 1.0


@pytest.mark.parametrize(("mass", "expected"), [(0.3, [0]), (0.45, [0, 2]), (0.75, [0, 2, 3])])
def test_top_mass_by_hand(mass, expected):
    assert top_mass(BY_HAND, mass).tolist() == expected


def test_top_fraction_by_hand():
    assert top_fraction(torch.arange(10.0).reshape(2, 5), 0.3).tolist() == [7, 8, 9]


@pytest.mark.parametrize("shape", [(1, 7), (13, 11), (3, 64)])
@pytest.mark.parametrize("mass", [0.001, 0.02, 0.3, 0.97])
def test_top_mass_agrees_with_the_slow_reference(shape, mass):
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(shape[1])) ** 4
    assert top_mass(scores, mass).tolist() == slow_top_mass(scores, mass)


@pytest.mark.parametrize(("fraction", "kept_out"), [(0.02, 137), (0.1, 126), (0.5, 70), (0.97, 4)])
def test_top_fraction_agrees_with_the_slow_reference(fraction, kept_out):
    scores = torch.rand((14, 10), generator=torch.Generator().manual_seed(1))
    scores[3] = 0.5  # ten equal scores inside
    assert top_fraction(scores, fraction).tolist() == slow_top_fraction(scores, kept_out)


def test_of_equal_scores_top_mass_takes_the_later():
    assert top_mass(torch.ones(2, 4), 0.25).tolist() == [6, 7]
    assert top_mass(torch.tensor([[2.0, 5.0, 2.0, 5.0]]), 0.3).tolist() == [3]


def test_top_fraction_leaves_out_ties_at_the_threshold():
    assert top_fraction(torch.tensor([[1.0, 2.0, 2.0, 2.0, 3.0]]), 0.4).tolist() == [4]
    with pytest.raises(InvalidResult, match="too many ties"):
        top_fraction(torch.ones(4, 4), 0.4)


@pytest.mark.parametrize("rule", SELECTORS.values())
@pytest.mark.parametrize("share", [1e-4, 0.02, 0.5, 0.999])
def test_between_one_and_its_share_plus_one_are_selected_sorted_and_once(rule, share):
    scores = torch.rand((40, 30), generator=torch.Generator().manual_seed(5))
    chosen = rule(scores, share)
    if rule is top_mass or share > 1e-3:
        assert 1 <= len(chosen) <= share * scores.numel() + 1
    assert chosen.dtype == torch.int64
    assert chosen.tolist() == sorted(set(chosen.tolist()))


@pytest.mark.parametrize("rule", SELECTORS.values())
def test_scale_dtype_and_memory_order_do_not_matter(rule):
    scores = torch.randint(1, 10_000, (17, 9), generator=torch.Generator().manual_seed(2)).float()
    expected = rule(scores, 0.1).tolist()
    for same in (scores * 1024, scores / 1024, scores.double(), scores.T.contiguous().T):
        assert rule(same, 0.1).tolist() == expected


def test_a_tiny_mass_of_a_large_layer_is_summed_in_float64():
    scores = torch.full((1500, 1500), 1.0)
    assert len(top_mass(scores, 0.1)) == pytest.approx(225_000, abs=1)


@pytest.mark.parametrize("rule", SELECTORS.values())
@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan"), float("inf"), "0.98", None, True])
def test_a_share_outside_of_0_to_1_is_bad_input(rule, share):
    with pytest.raises(BadInput, match="between 0 and 1"):
        rule(BY_HAND, share)


@pytest.mark.parametrize("rule", SELECTORS.values())
@pytest.mark.parametrize(
    ("value", "says"), [(float("nan"), "NaN"), (float("inf"), "infinite"), (-1e-6, "negative"), (-float("inf"), "NaN")]
)
def test_one_unusable_score_is_an_invalid_result(rule, value, says):
    scores = BY_HAND.clone()
    scores[1, 0] = value
    with pytest.raises(InvalidResult, match=says):
        rule(scores, 0.3)


@pytest.mark.parametrize("rule", SELECTORS.values())
@pytest.mark.parametrize("scores", [torch.zeros(3, 3), torch.zeros(0, 3)])
def test_nothing_but_zeros_is_an_invalid_result(rule, scores):
    with pytest.raises(InvalidResult, match="all zero"):
        rule(scores, 0.3)


def test_the_scores_are_left_as_they_were():
    scores = BY_HAND.clone().requires_grad_()
    top_mass(scores, 0.3)
    assert torch.equal(scores, BY_HAND)
