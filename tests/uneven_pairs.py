"""Inputs of one layer for pairs that are as uneven as can be, and UwmScorer run over them in batches."""

from __future__ import annotations

import torch

from uwm.editing.entries.uwm import UwmScorer
from uwm.statistics.channel_norms import TokenStatistics, token_statistics
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
        sides[1][3, :, 0], weight[4, 1:] = 0, 0  # dead on the unsafe side, and all that a row of W reads
        sides[0][5], sides[1][5] = 0, 0  # nothing at all
        lengths[1][6] = 1  # one token
        weight[:, 5] = 0
        weight[3, :] = 0
    return sides, lengths, weight


def statistics(x: torch.Tensor, lengths: torch.Tensor) -> TokenStatistics:
    return token_statistics(x, (torch.arange(TOKENS) < lengths[:, None]).long())


def tokens(x: torch.Tensor, lengths: torch.Tensor) -> list:
    """Each sample as lists [tokens][in] of the tokens that count."""
    return [sample[:length].tolist() for sample, length in zip(x, lengths.tolist(), strict=True)]


def fast(sides, lengths, weight, tower, batch, variant="ratio"):
    scorer = UwmScorer(WeightId(tower, 0, "fc2"), weight, variant)
    for start in range(0, max(map(len, lengths)), batch):
        rows = slice(start, start + batch)
        scorer.update(*(statistics(x[rows], n[rows]) for x, n in zip(sides, lengths, strict=True)))
    return scorer
