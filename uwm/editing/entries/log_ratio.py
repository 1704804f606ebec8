"""The mean of log ratios in place of UWM's mean of ratios: as UWM's score, but robust against single pairs."""

from __future__ import annotations

import torch

from ...weights import WeightId
from .uwm import EntryMean, UwmScorer


class LogRatioScorer(UwmScorer):
    """The geometric mean over pairs of φ(unsafe) / φ(safe), where UWM takes the arithmetic one (UWM, Eq. 10).

    A pair's ratio is a_i · b_j (see `UwmScorer`), so the mean of its log is mean log a_i + mean log b_j, of rank one up
    to neutral cases, and one pair with a tiny φ(safe) cannot decide the score. Score = exp of that mean; the text tower
    multiplies it by |W_ij| as UWM does. Swapping the sides inverts the score. Neutral cases have ratio 1 and are
    counted as UWM counts them.

    Args:
        weight_id: Which weight, for its tower's rule.
        weight: W [out, in].
    """

    SUMS = UwmScorer.SUMS

    def __init__(self, weight_id: WeightId, weight: torch.Tensor) -> None:
        super().__init__(weight_id, weight, "ratio")

    def _mean(self, neutral: float | None) -> EntryMean:
        return _LogMean(self._weight, 0.0, self._dtype)


class _LogMean(EntryMean):
    """The geometric mean over samples of a_i · b_j, where a product of 0 counts as 1."""

    SUMS = EntryMean.SUMS

    def add(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Add samples by their factors, [samples, out] and [samples, in]."""
        fit_a, fit_b = a > 0, b > 0
        log_a, log_b = torch.where(fit_a, a, 1).log(), torch.where(fit_b, b, 1).log()
        self._sum.addmm_(log_a.T, fit_b.to(a.dtype)).addmm_(fit_a.to(a.dtype).T, log_b)

    def value(self) -> torch.Tensor:
        """The mean [out, in]; the sum becomes it."""
        return super().value().exp_()
