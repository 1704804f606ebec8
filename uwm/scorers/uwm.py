"""The UWM score in its exact rank-one form (UWM, section 4, Eq. 8–10)."""

from __future__ import annotations

import torch

from ..profiler import TokenStatistics
from ..weights import WeightId

VISION_EPSILON = 1e-8  # added to σ in the vision tower only
CONSTANT = 1e-6  # σ below this share of the channel's norm is rounding, not spread


class UwmScorer:
    """Mean over pairs of φ(unsafe) / φ(safe) for every entry of one weight.

    For one sample φ_ij = (mean_k n_k |W_ik|) · (mean_k n_j |W_kj|) / σ_j (Eq. 8 and 9). In a pair's ratio
    mean_k |W_kj| cancels, so the ratio is a_i · b_j with a_i = (|W| n^u)_i / (|W| n^s)_i and
    b_j = (n^u_j / σ^u_j) / (n^s_j / σ^s_j), and the sum over a batch is one matrix product. The vision tower adds
    ε to σ; the text tower multiplies the mean by |W_ij|.

    Where φ is zero or undefined on either side (dead or constant channel, one token, zero row or column of W), the
    pair's ratio is 1, which says nothing, and is counted in `guards`. Sums are float64: batch sizes do not matter.

    Args:
        weight_id: Which weight, for its tower's rule.
        weight: W [out, in].
    """

    def __init__(self, weight_id: WeightId, weight: torch.Tensor) -> None:
        # MPS has no float64; the sums of such a device are kept on the CPU.
        self._device = torch.device("cpu") if weight.device.type == "mps" else weight.device
        self._weight = weight.detach().to(self._device)
        self._text = weight_id.tower == "text"
        self._sum = torch.zeros(weight.shape, dtype=torch.float64, device=self._device)
        self._zero_columns = (self._weight == 0).all(0)  # [in]
        self._zero_rows = (self._weight == 0).all(1)  # [out]
        self.pairs = 0
        self.guards = {
            "one_token_pairs": 0,
            "dead_channels": 0,
            "constant_channels": 0,
            "zero_columns": int(self._zero_columns.sum()),
            "zero_rows": int(self._zero_rows.sum()),
        }

    def update(self, safe: TokenStatistics, unsafe: TokenStatistics) -> None:
        """Add the pairs of one batch; row p of both sides is the same pair."""
        magnitude = self._weight.double().abs()
        a_safe, b_safe = self._factors(safe, magnitude)  # [pairs, out], [pairs, in]
        a_unsafe, b_unsafe = self._factors(unsafe, magnitude)
        self._count(safe, unsafe)
        fit_a = (a_safe > 0) & (a_unsafe > 0)
        fit_b = (b_safe > 0) & (b_unsafe > 0) & ~self._zero_columns
        a = torch.where(fit_a, a_unsafe / a_safe, 0)
        b = torch.where(fit_b, b_unsafe / b_safe, 0)
        self._sum += a.T @ b
        if not (fit_a.all() and fit_b.all()):
            self._sum += len(a) - fit_a.double().T @ fit_b.double()
        self.pairs += len(a)

    def scores(self) -> torch.Tensor:
        """The scores so far, float32 [out, in], on the CPU."""
        mean = self._sum / self.pairs
        if self._text:
            mean = mean * self._weight.double().abs()
        return mean.float().cpu()

    def _factors(self, side: TokenStatistics, magnitude: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Row factors (|W| n) [pairs, out] and column factors n / σ [pairs, in], 0 where they say nothing."""
        norm, std = side.norm.to(self._device), side.std.to(self._device)
        epsilon = 0.0 if self._text else VISION_EPSILON
        column = torch.where(_spread(norm, std), norm / (std + epsilon), 0)
        return norm @ magnitude.T, column

    def _count(self, safe: TokenStatistics, unsafe: TokenStatistics) -> None:
        one = (safe.tokens < 2) | (unsafe.tokens < 2)
        dead = (safe.norm == 0) | (unsafe.norm == 0)
        flat = ~(_spread(safe.norm, safe.std) & _spread(unsafe.norm, unsafe.std)) & ~dead & ~one[:, None]
        self.guards["one_token_pairs"] += int(one.sum())
        self.guards["dead_channels"] += int(dead.sum())
        self.guards["constant_channels"] += int(flat.sum())


def _spread(norm: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Whether a channel varies over the tokens by more than rounding."""
    return std > CONSTANT * norm
