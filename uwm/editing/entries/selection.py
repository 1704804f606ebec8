"""Which entries of a scored weight are edited: top mass (Eq. 11 of UWM) and top fraction."""

from __future__ import annotations

import math

import torch

from ...errors import BadInput, InvalidResult


def top_mass(scores: torch.Tensor, mass: float) -> torch.Tensor:
    """The entries that carry the top `mass` of the normalised scores (UWM, Eq. 11).

    Scores are normalised to sum 1 and sorted ascending (stable, so that of equal scores the later entry counts as
    the higher); selected is what lies beyond a cumulative sum of 1 − mass, in float64.

    Args:
        scores: Non-negative, [out, in].
        mass: τ, between 0 and 1.

    Returns:
        Sorted flat indices, int64 [n], 1 ≤ n ≤ mass · out · in + 1.

    Raises:
        BadInput: `mass` is not between 0 and 1.
        InvalidResult: The scores are not finite, negative or all zero, or the bound on n does not hold.
    """
    flat = _checked(scores, mass)
    order = flat.argsort(stable=True)
    cumulative = (flat[order] / flat.sum()).cumsum(0)
    chosen = order[cumulative > 1 - mass].sort().values
    if not 1 <= len(chosen) <= mass * len(flat) + 1:
        raise InvalidResult(f"top mass {mass} selected {len(chosen)} of {len(flat)} entries, outside of 1 … τN + 1")
    return chosen


def top_fraction(scores: torch.Tensor, fraction: float) -> torch.Tensor:
    """The entries strictly above the k-th smallest score, k = (1 − fraction) · out · in.

    Arguments, result and errors as `top_mass`; ties at the threshold are left out.
    """
    flat = _checked(scores, fraction)
    k = max(1, min(len(flat), int((1 - fraction) * len(flat))))
    chosen = (flat > flat.kthvalue(k).values).nonzero().flatten()
    if not 1 <= len(chosen) <= fraction * len(flat) + 1:
        raise InvalidResult(f"top fraction {fraction} selected {len(chosen)} of {len(flat)} entries: too many ties")
    return chosen


SELECTORS = {"top-mass": top_mass, "top-fraction": top_fraction}


def check_share(share: float) -> None:
    """Refuse a τ that is no number between 0 and 1. Raises BadInput."""
    if not (isinstance(share, int | float) and math.isfinite(share) and 0 < share < 1):
        raise BadInput(f"--mass {share}: expected a number between 0 and 1, such as 0.02")


def _checked(scores: torch.Tensor, share: float) -> torch.Tensor:
    """The scores as float64 [out · in], fit to be selected from."""
    check_share(share)
    flat = scores.detach().cpu().double().flatten()
    if not torch.isfinite(flat).all():
        raise InvalidResult("the scores hold NaN or infinite values")
    if (flat < 0).any() or flat.sum() <= 0:
        raise InvalidResult(
            "the scores are negative or all zero: no usable activations, or of a difference no unsafe content"
        )
    return flat
