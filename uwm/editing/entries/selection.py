"""Which entries of a scored weight are edited: top mass (Eq. 11 of UWM) and top fraction."""

from __future__ import annotations

import math

import torch

from ...errors import BadInput, InvalidResult

SMALL = 4096  # scores that are sorted rather than partitioned
DROPPED_BITS = 44  # of float64: a bucket has the exponent and 8 bits of the fraction, values within 0.4 %


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
    chosen = _partitioned(flat, mass) if len(flat) >= SMALL else None
    if chosen is None:
        chosen = _sorted(flat, mass)
    if not 1 <= len(chosen) <= mass * len(flat) + 1:
        raise InvalidResult(f"top mass {mass} selected {len(chosen)} of {len(flat)} entries, outside of 1 … τN + 1")
    return chosen


def _sorted(flat: torch.Tensor, mass: float) -> torch.Tensor:
    """Top mass of scores [n] as it is defined."""
    order = flat.argsort(stable=True)
    cumulative = (flat[order] / flat.sum()).cumsum(0)
    return order[cumulative > 1 - mass].sort().values


def _partitioned(flat: torch.Tensor, mass: float) -> torch.Tensor | None:
    """The same indices without sorting all scores [n]; None where rounding may decide.

    Scores fall into buckets by the leading bits of their floating-point format, which are in the order of the values.
    The mass of the buckets says in which of them the cumulative sum passes 1 − mass; only its entries are sorted.
    Non-negative terms that are added in any order sum up to within n u of the exact sum (Higham 2002, eq. 4.4). So the
    definition's sum and this one lie within twice that, and an entry whose sum is further from 1 − mass is decided.
    """
    shares = flat / flat.sum()
    buckets = flat.view(torch.int64) >> DROPPED_BITS
    buckets = buckets.sub_(buckets.min()).to(torch.int32)
    cumulative = torch.bincount(buckets, weights=shares).cumsum(0)
    bound = 2.1 * (len(flat) + len(cumulative)) * 2.0**-53  # u = 2⁻⁵³
    below, above = 1 - mass - bound, 1 - mass + bound
    first, last = (int((cumulative <= edge).sum()) for edge in (below, above))
    if last == len(cumulative):
        return None
    near = ((buckets >= first) & (buckets <= last)).nonzero().flatten()
    near = near[flat[near].argsort(stable=True)]
    start = cumulative[first - 1] if first else 0.0
    sums = shares[near].cumsum(0) + start
    if ((sums > below) & (sums <= above)).any():
        return None
    taken = buckets > last
    taken[near[sums > above]] = True
    return taken.nonzero().flatten()


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
    low, high = flat.aminmax() if len(flat) else (flat.sum(), flat.sum())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InvalidResult("the scores hold NaN or infinite values")
    if low < 0 or high <= 0:
        raise InvalidResult(
            "the scores are negative or all zero: no usable activations, or of a difference no unsafe content"
        )
    return flat
