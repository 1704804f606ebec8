"""UWM's sum as an accelerator adds it up, by one product of joined factors, against the CPU's; both on the CPU here."""

from __future__ import annotations

import pytest
import torch

from uwm.editing.entries import uwm
from uwm.editing.entries.uwm import UwmScorer
from uwm.statistics.channel_norms import TokenStatistics
from uwm.weights import WeightId

OUT, IN = 48, 32
BATCHES = (5, 7, 1, 130, 20)


def side(generator, samples):
    """Statistics with dead and constant channels, a dead sample, and samples of one token."""
    norm, std = (torch.rand(samples, IN, generator=generator) + 0.1 for _ in range(2))
    norm[0, 7], std[-1, 9], norm[samples // 2] = 0, 0, 0
    std[norm == 0] = 0
    tokens = torch.randint(1, 9, (samples,), generator=generator)
    std[tokens == 1] = 0
    return TokenStatistics(norm, std, tokens)


@pytest.mark.parametrize("tower", ["text", "vision"])
@pytest.mark.parametrize("room", [12, 128])
def test_the_joined_product_gives_the_same_scores(tower, room, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(OUT, IN, generator=generator)
    weight[3], weight[:, 5] = 0, 0
    plain = UwmScorer(WeightId(tower, 0, "fc2"), weight)
    monkeypatch.setattr(uwm, "ROOM", room)
    joined = UwmScorer(WeightId(tower, 0, "fc2"), weight)
    monkeypatch.setattr(joined, "_add_pairs", joined._add_ratios)
    for samples in BATCHES:
        sides = side(generator, samples), side(generator, samples)
        for scorer in (plain, joined):
            scorer.update(*sides)
    assert joined.guards == plain.guards
    assert all(plain.guards.values())
    torch.testing.assert_close(joined.scores(), plain.scores(), rtol=1e-6, atol=0)
