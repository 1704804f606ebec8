"""Norm and spread of every channel of a layer's input over the tokens (UWM, section 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch


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
