"""Directional ablation ("abliteration"): what is written to the residual stream loses its part along one direction.

Arditi et al., "Refusal in Language Models Is Mediated by a Single Direction", arXiv 2406.11717: the direction is a
difference of means (section 2.3), the edit is weight orthogonalisation (section 4.1), W ← W − r rᵀ W. Their r separates
harmful from harmless instructions; here r = unsafe mean − safe mean of the residual stream after a block.
"""

from __future__ import annotations

import torch

from ...errors import InvalidResult


def direction(safe_mean: torch.Tensor, unsafe_mean: torch.Tensor) -> torch.Tensor:
    """The unit vector r from the safe to the unsafe mean of the residual stream, float64 [width].

    Raises:
        InvalidResult: The means are equal: there is no direction.
    """
    step = unsafe_mean.double() - safe_mean.double()
    norm = step.norm()
    if not norm > 0:
        raise InvalidResult("the safe and the unsafe mean of the residual stream are equal: there is no direction")
    return step / norm


def ablate_matrix(weight: torch.Tensor, unit: torch.Tensor, strength: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """W ← (I − strength · r rᵀ) W as what is added: left · rightᵀ of rank one.

    Args:
        weight: W [width, in] of a matrix that writes to the residual stream (out_proj, fc2).
        unit: r [width], of unit length.
        strength: 1 removes the part along r, 2 reflects it, 0 changes nothing.

    Returns:
        left [width, 1] and right [in, 1], float64.
    """
    unit = unit.double()
    return -strength * unit[:, None], (weight.double().T @ unit)[:, None]


def ablate_bias(bias: torch.Tensor, unit: torch.Tensor, strength: float = 1.0) -> torch.Tensor:
    """The new bias (I − strength · r rᵀ) b of such a matrix, float64 [width]; arguments as `ablate_matrix`."""
    bias, unit = bias.double(), unit.double()
    return bias - strength * unit * (unit @ bias)
