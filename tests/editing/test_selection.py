"""Top mass and top fraction: by hand, against slow references, at ties and outside of their domain."""

from __future__ import annotations

import pytest
import torch
from reference.slow_selection import slow_top_fraction, slow_top_mass, sorted_top_mass

from uwm.editing.entries import selection
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


DRAWS = {
    "even": lambda n, g: torch.rand(n, generator=g),
    "heavy tail": lambda n, g: torch.rand(n, generator=g).double().pow(-2),
    "of many sizes": lambda n, g: (12 * torch.randn(n, generator=g)).exp(),
    "nearly equal": lambda n, g: 1 + 1e-6 * torch.rand(n, generator=g),
    "ties": lambda n, g: torch.randint(0, 5, (n,), generator=g).float(),
    "one value and zeros": lambda n, g: 0.3 * (torch.rand(n, generator=g) > 0.5).float(),
    "one entry has all": lambda n, g: torch.eye(1, n)[0] * 7,
    "negative zeros": lambda n, g: (drawn := torch.randn(n, generator=g)).where(drawn > 0, torch.tensor(-0.0)),
}


@pytest.fixture
def partitioned(monkeypatch):
    """Also small tensors are partitioned; the result of each attempt."""
    attempts, original = [], selection._partitioned
    monkeypatch.setattr(selection, "SMALL", 0)
    monkeypatch.setattr(selection, "_partitioned", lambda *given: attempts.append(original(*given)) or attempts[-1])
    return attempts


def found(scores, mass):
    """The indices without the bound on their number, which ties and single entries break."""
    flat = selection._checked(scores, mass)
    chosen = selection._partitioned(flat, mass)
    return selection._sorted(flat, mass) if chosen is None else chosen


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("size", [1, 2, 3, 17, 500, 20_000])
def test_a_partition_selects_what_a_sort_of_all_scores_selects(name, size, partitioned):
    generator = torch.Generator().manual_seed(size)
    for draw in range(12 if size < 1000 else 3):
        scores = DRAWS[name](size, generator)
        if scores.sum() == 0:
            scores[-1] = 0.5
        for mass in (1e-12, 1e-3, 0.02, 0.1, 0.5, 0.97):
            assert torch.equal(found(scores, mass), sorted_top_mass(scores, mass)), (draw, mass)


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("steps", [-1, 0, 1])
def test_where_a_cumulative_sum_meets_the_boundary_the_sort_decides(name, steps, partitioned):
    """1 − mass is a cumulative sum of the definition, or its neighbour in float64."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        scores = DRAWS[name](300, generator).double()
        flat = scores[scores.argsort(stable=True)] / scores.sum()
        sums = flat.cumsum(0)
        edge = float(sums[int(torch.randint(0, 299, (), generator=generator))])
        mass = 1 - (edge + steps * 2.0**-53)
        if 0 < mass < 1:
            assert torch.equal(found(scores, mass), sorted_top_mass(scores, mass))
            assert partitioned[-1] is None


def test_no_sort_of_all_scores_is_needed_where_rounding_cannot_decide(partitioned, monkeypatch):
    monkeypatch.setattr(selection, "_sorted", None)
    scores = torch.randn((300, 200), generator=torch.Generator().manual_seed(8)).exp()
    for mass in (0.001, 0.02, 0.3):
        assert torch.equal(top_mass(scores, mass), sorted_top_mass(scores, mass))
    assert len(partitioned) == 3


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
def test_f51_a_share_outside_of_0_to_1_is_bad_input(rule, share):
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
