"""Token statistics against torch, and their way to the scorers."""

from __future__ import annotations

import torch

from uwm.statistics.channel_norms import ChannelNorms, token_statistics
from uwm.statistics.passes import SAFE, UNSAFE, Part
from uwm.weights import WeightId


def test_statistics_against_torch_on_every_length():
    x = torch.randn(4, 6, 5) + 2
    mask = (torch.arange(6) < torch.tensor([6, 4, 2, 1])[:, None]).long()
    found = token_statistics(x, mask)
    for row, length in enumerate((6, 4, 2, 1)):
        kept = x[row, :length].double()
        torch.testing.assert_close(found.norm[row], kept.norm(dim=0), rtol=1e-6, atol=0)
        expected = kept.std(dim=0) if length > 1 else torch.zeros(5).double()
        torch.testing.assert_close(found.std[row], expected, rtol=1e-6, atol=0)
    assert found.tokens.tolist() == [6, 4, 2, 1]


def test_without_a_mask_all_tokens_count():
    x = torch.randn(3, 6, 5)
    full = token_statistics(x, torch.ones(3, 6, dtype=torch.long))
    found = token_statistics(x)
    assert torch.equal(found.norm, full.norm)
    assert torch.equal(found.std, full.std)


class Scorer:
    def __init__(self):
        self.batches = []

    def update(self, safe, unsafe):
        self.batches.append((safe, unsafe))


def test_every_scorer_gets_its_own_weight_of_the_tower_that_ran():
    weights = [WeightId("text", 0, "fc2"), WeightId("text", 1, "fc2"), WeightId("vision", 0, "fc2")]
    reducer = ChannelNorms({weight: Scorer() for weight in weights})
    assert reducer.layers("text") == weights[:2]
    x = {(weight, side): torch.randn(3, 4, 5) for weight in weights[:2] for side in (SAFE, UNSAFE)}
    for (weight, side), inputs in x.items():
        reducer.take(weight, side, inputs, None)
    reducer.update(Part("text", 0, (torch.zeros(3, 2), torch.zeros(3, 2))))
    for weight in weights[:2]:
        ((safe, unsafe),) = reducer.scorers[weight].batches
        for found, side in ((safe, SAFE), (unsafe, UNSAFE)):
            expected = token_statistics(x[weight, side])
            assert torch.equal(found.norm, expected.norm.float().double())
            assert torch.equal(found.std, expected.std.float().double())
    assert reducer.scorers[weights[2]].batches == []
