"""Norm and spread of every channel of a layer's input over the tokens (UWM, section 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ..errors import BadInput
from ..weights import WeightId
from .passes import SAFE, UNSAFE, Part, Shared


@dataclass(frozen=True)
class TokenStatistics:
    """Of one layer's input X [tokens, in], for each sample of a batch (UWM, section 4).

    Attributes:
        norm: n_j = ‖X[:, j]‖₂ over the tokens, float64 [samples, in].
        std: σ_j, the unbiased standard deviation over the tokens, float64 [samples, in]; 0 where it is undefined.
        tokens: How many tokens each sample has, [samples].
    """

    norm: torch.Tensor
    std: torch.Tensor
    tokens: torch.Tensor


def token_statistics(x: torch.Tensor, mask: torch.Tensor | None = None) -> TokenStatistics:
    """Statistics of inputs [samples, tokens, in]; only tokens with mask 1 count, all of them without a mask."""
    x = x.detach().float()
    if mask is None:
        tokens = torch.full((len(x),), x.shape[1], device=x.device)
        kept = torch.ones(1, 1, 1, device=x.device)
    else:
        tokens = mask.sum(1)
        kept = mask[:, :, None].float()
    count = tokens[:, None].double()
    x = x * kept
    mean = (x.sum(1).double() / count).float()
    spread = ((x - mean[:, None]) * kept).square().sum(1).double()
    std = (spread / (count - 1).clamp_min(1)).sqrt()
    return TokenStatistics(x.square().sum(1).double().sqrt(), std, tokens)


class Scorer(Protocol):
    """What `ChannelNorms` feeds: statistics of the same pairs, safe and unsafe, batch by batch."""

    def update(self, safe: TokenStatistics, unsafe: TokenStatistics) -> None:
        """Take in one batch."""


class ChannelNorms(Shared):
    """Reducer of UWM: token statistics of every weight's input, given to that weight's scorer (UWM, section 4).

    Args:
        scorers: One a weight; it is fed after both sides of a batch.
    """

    def __init__(self, scorers: Mapping[WeightId, Scorer]) -> None:
        self.scorers = scorers
        self._found: dict[tuple[WeightId, int], TokenStatistics] = {}

    def layers(self, tower: str) -> Sequence[WeightId]:
        """The scored weights of a tower."""
        return [weight for weight in self.scorers if weight.tower == tower]

    def take(self, weight: WeightId, side: int, x: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Keep the token statistics of one side until the batch is complete."""
        self._found[weight, side] = token_statistics(x, mask)

    def update(self, part: Part) -> None:
        """Feed the scorers. Raises BadInput when the batch has no unsafe side."""
        if len(part.embeddings) < 2:
            raise BadInput(f"a batch of the {part.tower} tower has no unsafe side; UWM compares safe with unsafe")
        for weight in self.layers(part.tower):
            self.give((weight, self._found.pop((weight, SAFE)), self._found.pop((weight, UNSAFE))))

    def join(self, item: tuple[WeightId, TokenStatistics, TokenStatistics]) -> None:
        """Feed a weight's scorer."""
        weight, safe, unsafe = item
        self.scorers[weight].update(safe, unsafe)
