"""The UWM score and its ablations in their exact rank-one form (UWM, section 4, Eq. 8–10)."""

from __future__ import annotations

import torch

from ...errors import BadInput
from ...statistics.channel_norms import TokenStatistics
from ...weights import WeightId
from .editor import VARIANTS

VISION_EPSILON = 1e-8  # added to σ in the vision tower only
CONSTANT = 1e-6  # σ below this share of the channel's norm is rounding, not spread


class UwmScorer:
    """How much more every entry of one weight is used by the unsafe side of pairs than by the safe one.

    For one sample φ_ij = (mean_k n_k |W_ik|) · (mean_k n_j |W_kj|) / σ_j (Eq. 8 and 9), which is rank one:
    φ_ij = a_i · b_j · c_j / in, with a_i = (|W| n)_i, b_j = n_j / σ_j and c_j = mean_k |W_kj|. So the sum over a batch
    is one matrix product; c_j / in is the same for every sample and cancels in ratios. The vision tower adds ε to σ;
    the text tower multiplies the score by |W_ij|. The variants:

    - ``ratio``: the mean over pairs of φ(unsafe) / φ(safe) (Eq. 10).
    - ``ratio-of-means``: the mean φ of the unsafe side by that of the safe side, which need not be pairs.
    - ``difference``: the mean over pairs of φ(unsafe) − φ(safe). A negative one carries no unsafe content: it scores 0.
    - ``unsafe-only``: the mean φ of the unsafe side; the safe side is not looked at.

    Where φ is zero or undefined (dead or constant channel, one token, zero row or column of W) it says nothing, and is
    counted in `guards`. A pair with such a side has ratio 1 and difference 0. A sample is left out of the mean of its
    side; where no sample is left on a side, the ratio of means is 1 and the score of the unsafe side alone 0. The
    counts are of pairs where pairs are compared, and of the samples of the sides looked at otherwise. Sums are
    float64: batch sizes do not matter.

    Args:
        weight_id: Which weight, for its tower's rule.
        weight: W [out, in].
        variant: One of `VARIANTS`.
    """

    def __init__(self, weight_id: WeightId, weight: torch.Tensor, variant: str = VARIANTS[0]) -> None:
        assert variant in VARIANTS, variant
        # MPS has no float64; the sums of such a device are kept on the CPU.
        self._device = torch.device("cpu") if weight.device.type == "mps" else weight.device
        self._weight = weight.detach().to(self._device)
        self._text = weight_id.tower == "text"
        self._variant = variant
        neutral = {"ratio": 1.0, "difference": 0.0}.get(variant)
        self._main = EntryMean(
            self._weight, neutral
        )  # of the pairs where they are compared, of the unsafe side otherwise
        self._safe = EntryMean(self._weight, None) if variant == "ratio-of-means" else None
        self._zero_columns = (self._weight == 0).all(0)  # [in]
        self.pairs = 0
        self.guards = {
            "one_token_pairs": 0,
            "dead_channels": 0,
            "constant_channels": 0,
            "zero_columns": int(self._zero_columns.sum()),
            "zero_rows": int((self._weight == 0).all(1).sum()),
        }

    def update(self, safe: TokenStatistics, unsafe: TokenStatistics) -> None:
        """Add one batch; row p of both sides is the same pair, but for the variants that compare no pairs.

        Raises:
            BadInput: The sides are of different length and the variant compares pairs.
        """
        magnitude = self._weight.double().abs()
        if self._variant in ("ratio", "difference"):
            if len(safe.norm) != len(unsafe.norm):
                raise BadInput(
                    f"a batch has {len(safe.norm)} safe and {len(unsafe.norm)} unsafe samples; the variant "
                    f"{self._variant} compares pairs, ratio-of-means needs none"
                )
            self._add_pairs(*self._factors(safe, magnitude), *self._factors(unsafe, magnitude))
            self._count(safe, unsafe)
        else:
            self._main.add(*self._factors(unsafe, magnitude))
            self._count(unsafe)
        if self._safe is not None:
            self._safe.add(*self._factors(safe, magnitude))
            self._count(safe)
        self.pairs += len(unsafe.norm)

    def scores(self) -> torch.Tensor:
        """The scores so far, float32 [out, in], on the CPU."""
        magnitude = self._weight.double().abs()
        score = self._main.value()
        if self._safe is not None:
            safe = self._safe.value()
            score = torch.where((safe > 0) & (score > 0), score / safe, 1)
        elif self._variant != "ratio":
            score = score.clamp_min(0) * (magnitude.mean(0) / magnitude.shape[1])
        if self._text:
            score = score * magnitude
        return score.float().cpu()

    def _add_pairs(
        self, a_safe: torch.Tensor, b_safe: torch.Tensor, a_unsafe: torch.Tensor, b_unsafe: torch.Tensor
    ) -> None:
        """Add the ratios or differences of pairs with these factors, [pairs, out] and [pairs, in]."""
        fit_a = (a_safe > 0) & (a_unsafe > 0)
        fit_b = (b_safe > 0) & (b_unsafe > 0)
        if self._variant == "ratio":
            self._main.add(torch.where(fit_a, a_unsafe / a_safe, 0), torch.where(fit_b, b_unsafe / b_safe, 0))
        else:
            less = torch.where(fit_a, a_safe, 0), torch.where(fit_b, b_safe, 0)
            self._main.add(torch.where(fit_a, a_unsafe, 0), torch.where(fit_b, b_unsafe, 0), less)

    def _factors(self, side: TokenStatistics, magnitude: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Row factors a [samples, out] and column factors b [samples, in] of φ, 0 where it says nothing."""
        norm, std = side.norm.to(self._device), side.std.to(self._device)
        epsilon = 0.0 if self._text else VISION_EPSILON
        column = torch.where(_spread(norm, std) & ~self._zero_columns, norm / (std + epsilon), 0)
        return norm @ magnitude.T, column

    def _count(self, *sides: TokenStatistics) -> None:
        """Count what says nothing on any of these sides; row p of each is the same pair."""
        one = torch.stack([side.tokens < 2 for side in sides]).any(0)
        dead = torch.stack([side.norm == 0 for side in sides]).any(0)
        spread = torch.stack([_spread(side.norm, side.std) for side in sides]).all(0)
        self.guards["one_token_pairs"] += int(one.sum())
        self.guards["dead_channels"] += int(dead.sum())
        self.guards["constant_channels"] += int((~spread & ~dead & ~one[:, None]).sum())


class EntryMean:
    """The mean [out, in] over samples of a_i · b_j, where a product of 0 says nothing.

    Args:
        weight: W [out, in], for shape and device.
        neutral: What such a product counts as; None leaves it out of the mean, which is 0 where nothing is left.
    """

    def __init__(self, weight: torch.Tensor, neutral: float | None) -> None:
        self._sum = torch.zeros(weight.shape, dtype=torch.float64, device=weight.device)
        self._neutral = neutral
        self._left_out: torch.Tensor | None = None  # [out, in] once there is any: most layers need none
        self._samples = 0

    def add(self, a: torch.Tensor, b: torch.Tensor, less: tuple[torch.Tensor, torch.Tensor] | None = None) -> None:
        """Add samples by their factors, [samples, out] and [samples, in], less those of the other side of each."""
        added = a.T @ b
        if less is not None:
            added -= less[0].T @ less[1]  # before the sum, so that equal sides leave no rounding in it
        self._sum += added
        self._samples += len(a)
        fit_a, fit_b = a > 0, b > 0
        if self._neutral == 0 or (fit_a.all() and fit_b.all()):
            return
        silent = len(a) - fit_a.double().T @ fit_b.double()
        if self._neutral is None:
            self._left_out = silent if self._left_out is None else self._left_out + silent
        else:
            self._sum += self._neutral * silent

    def value(self) -> torch.Tensor:
        """The mean so far, float64 [out, in]."""
        if self._left_out is None:
            return self._sum / self._samples
        return self._sum / (self._samples - self._left_out).clamp_min(1)


def _spread(norm: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Whether a channel varies over the tokens by more than rounding."""
    return std > CONSTANT * norm
