"""The mean of log ratios against slow loops on uneven data with every neutral case, and its theorems."""

from __future__ import annotations

import pytest
import torch
from reference.slow_uwm import uwm_score
from uneven_pairs import IN, OUT, PAIRS, fast, make_inputs, statistics, tokens

from uwm.editing.entries.log_ratio import LogRatioScorer
from uwm.errors import BadInput
from uwm.weights import WeightId

TOWERS = ("text", "vision")


def scored(sides, lengths, weight, tower, batch):
    scorer = LogRatioScorer(WeightId(tower, 0, "fc2"), weight)
    for start in range(0, max(map(len, lengths)), batch):
        rows = slice(start, start + batch)
        scorer.update(*(statistics(x[rows], n[rows]) for x, n in zip(sides, lengths, strict=True)))
    return scorer


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("neutral", [False, True])
@pytest.mark.parametrize("batch", [1, 4, PAIRS])
def test_equals_the_slow_form(tower, neutral, batch):
    sides, lengths, weight = make_inputs(1, neutral)
    expected = torch.tensor(uwm_score(*map(tokens, sides, lengths), weight.tolist(), tower, "log-ratio"))
    found = scored(sides, lengths, weight, tower, batch).scores()
    torch.testing.assert_close(found, expected.float(), rtol=2e-5, atol=0)


@pytest.mark.parametrize("tower", TOWERS)
def test_order_and_doubling_do_not_matter(tower):
    sides, lengths, weight = make_inputs(3, odd=True)
    straight = scored(sides, lengths, weight, tower, 4).scores()
    order = torch.randperm(PAIRS, generator=torch.Generator().manual_seed(0))
    for rows in (order, torch.cat([order, order])):
        found = scored([x[rows] for x in sides], [n[rows] for n in lengths], weight, tower, 4).scores()
        torch.testing.assert_close(found, straight, rtol=1e-6, atol=0)


def test_swapped_sides_invert_the_score():
    sides, lengths, weight = make_inputs(3, odd=True)
    forward = scored(sides, lengths, weight, "vision", 4).scores()
    backward = scored(sides[::-1], lengths[::-1], weight, "vision", 4).scores()
    torch.testing.assert_close(forward * backward, torch.ones(OUT, IN))
    assert not torch.allclose(forward, backward, rtol=0.1)


@pytest.mark.parametrize("tower", TOWERS)
def test_never_above_the_mean_of_ratios(tower):
    """A geometric mean is at most the arithmetic one."""
    inputs = make_inputs(5, odd=True)
    log, ratio = scored(*inputs, tower, 4).scores(), fast(*inputs, tower, 4).scores()
    assert (log <= ratio * (1 + 1e-6)).all()
    assert (log < 0.9 * ratio).any()


def test_one_pair_that_runs_away_decides_less():
    sides, lengths, weight = make_inputs(6, odd=False)
    wild = [sides[0].clone(), sides[1]]
    wild[0][2] *= 1e-6  # all of one safe sample is nearly dead
    change = {}
    for score in (scored, fast):
        tame, far = (score(x, lengths, weight, "vision", 4).scores() for x in (sides, wild))
        change[score] = float((far / tame).mean())
    assert change[scored] < 10
    assert change[fast] > 1e4


@pytest.mark.parametrize("tower", TOWERS)
def test_identical_sides_and_the_prior(tower):
    sides, lengths, weight = make_inputs(4, odd=True)
    same = scored([sides[0], sides[0]], [lengths[0], lengths[0]], weight, tower, 4).scores()
    torch.testing.assert_close(same, weight.abs() if tower == "text" else torch.ones(OUT, IN))


def test_neutral_cases_are_counted_as_uwm_counts_them():
    inputs = make_inputs(1, odd=True)
    log, ratio = scored(*inputs, "vision", 4), fast(*inputs, "vision", 4)
    assert log.guards == ratio.guards
    assert any(log.guards.values())
    assert log.pairs == PAIRS


def test_pairs_that_are_none_are_refused():
    sides, lengths, weight = make_inputs(4, odd=False)
    with pytest.raises(BadInput, match="7 safe and 9 unsafe samples"):
        scored([sides[0][:7], sides[1]], [lengths[0][:7], lengths[1]], weight, "vision", PAIRS)
