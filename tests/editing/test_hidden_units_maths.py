"""Hidden units by paired effect size: against loops, and what is chosen."""

from __future__ import annotations

import pytest
import torch
from reference.slow_closed_form import effect_sizes

from uwm.editing.closed_form.hidden_units_maths import column_entries, paired_effect_sizes, top_units
from uwm.errors import BadInput, InvalidResult

PAIRS, HIDDEN = 11, 9


def make():
    generator = torch.Generator().manual_seed(0)
    drift = torch.linspace(-3, 40, PAIRS)[:, None]
    safe, unsafe = torch.randn(2, PAIRS, HIDDEN, generator=generator) + drift
    unsafe[:, 2] += 1
    unsafe[:, 6] -= 1
    safe[:, 4] = unsafe[:, 4] = 0  # dead
    safe[:, 5] = unsafe[:, 5] = drift[:, 0]  # the same on both sides
    return safe, unsafe


def test_equals_the_loops():
    safe, unsafe = make()
    found = paired_effect_sizes(safe, unsafe)
    torch.testing.assert_close(found, torch.tensor(effect_sizes(safe, unsafe), dtype=torch.float64), rtol=1e-9, atol=0)
    assert found[[4, 5]].tolist() == [0, 0]


def test_sides_turn_the_sign_and_order_and_scale_do_not_matter():
    safe, unsafe = make()
    found, order = paired_effect_sizes(safe, unsafe), torch.randperm(PAIRS)
    torch.testing.assert_close(paired_effect_sizes(unsafe, safe), -found)
    torch.testing.assert_close(paired_effect_sizes(safe[order], unsafe[order]), found)
    torch.testing.assert_close(paired_effect_sizes(1024 * safe, 1024 * unsafe), found)


def test_pairs_count_where_a_mean_would_see_nothing():
    """Pairs that differ much among themselves: the difference within pairs still shows."""
    base = torch.linspace(-100, 100, PAIRS)[:, None].double()
    noise = torch.randn(PAIRS, 1, generator=torch.Generator().manual_seed(0)).double()
    assert paired_effect_sizes(base, base + 1 + 0.1 * noise) > 5
    assert paired_effect_sizes(base, (base + 1 + 0.1 * noise).flip(0)).abs() < 0.1


def test_a_constant_difference_up_to_rounding_says_nothing():
    base = torch.linspace(1, 2, PAIRS)[:, None].double()
    assert paired_effect_sizes(base, base + 0.1).tolist() == [0]


def test_what_is_no_pair_is_refused():
    safe, unsafe = make()
    with pytest.raises(BadInput, match="10 safe and 11 unsafe samples"):
        paired_effect_sizes(safe[1:], unsafe)
    with pytest.raises(InvalidResult, match="at least two pairs; 1 were seen"):
        paired_effect_sizes(safe[:1], unsafe[:1])


def test_the_top_share():
    effects = torch.tensor([0.5, -3.0, 2.0, 0.5, 1.0, 0.0, 0.5])
    assert top_units(effects, 0.01).tolist() == [2]
    assert top_units(effects, 0.3).tolist() == [2, 4]
    assert top_units(effects, 0.5).tolist() == [0, 2, 4]  # of equals the first
    assert top_units(effects, 1.0).tolist() == [0, 2, 3, 4, 6]
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(BadInput, match="of the hidden units"):
            top_units(effects, share)
    with pytest.raises(InvalidResult, match="no hidden unit is more active"):
        top_units(-effects.abs(), 0.5)


def test_columns_as_flat_indices():
    found = column_entries(torch.tensor([4, 1]), 3, 6)
    mask = torch.zeros(3, 6, dtype=torch.bool)
    mask[:, [1, 4]] = True
    assert torch.equal(found, mask.flatten().nonzero().flatten())


def test_scaled_columns_scale_what_the_units_write():
    generator = torch.Generator().manual_seed(1)
    fc2, x = torch.randn(3, 6, generator=generator), torch.randn(4, 6, generator=generator)
    changed = fc2.clone()
    changed.view(-1)[column_entries(torch.tensor([1, 4]), 3, 6)] *= 0.25
    scale = torch.tensor([1, 0.25, 1, 1, 0.25, 1])
    torch.testing.assert_close(x @ changed.T, (x * scale) @ fc2.T)
