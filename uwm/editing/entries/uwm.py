"""The UWM score and its ablations in their exact rank-one form (UWM, section 4, Eq. 8–10)."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...errors import BadInput
from ...statistics.channel_norms import TokenStatistics
from ...weights import WeightId
from .editor import VARIANTS

VISION_EPSILON = 1e-8  # added to σ in the vision tower only
ROOM = 12  # samples that wait at least
BLOCK = 256  # rows of W at a time
ON_DEVICE = 128, 8192  # the same two on an accelerator, whose operations cost little more on more rows
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
    counts are of pairs where pairs are compared, and of the samples of the sides looked at otherwise.

    Samples wait until there are `ROOM` of them or a 64th of the rows of W, whatever the batches, and are then added by
    one product, `BLOCK` rows of W at a time: batch sizes do not matter. On an accelerator both are larger, and nothing
    waits for its results. Of ratios factors and sums are float32, as the
    scores are: a product rounds by 1e-7 of the sum, at random. The other variants, whose φ can be of any size and
    cancel, keep them in float64.

    Args:
        weight_id: Which weight, for its tower's rule.
        weight: W [out, in].
        variant: One of `VARIANTS`.
    """

    SUMS = ("pairs", "_counts", "_main", "_safe", "_waiting", "_waiting_safe")

    def __init__(self, weight_id: WeightId, weight: torch.Tensor, variant: str = VARIANTS[0]) -> None:
        assert variant in VARIANTS, variant
        # MPS has no float64; the sums of such a device are kept on the CPU.
        self._device = torch.device("cpu") if weight.device.type == "mps" else weight.device
        self._weight = weight.detach().to(self._device)
        self._sizes = (ROOM, BLOCK) if self._device.type == "cpu" else ON_DEVICE
        self._text = weight_id.tower == "text"
        self._variant = variant
        self._dtype = torch.float32 if variant == "ratio" and _float32_is_exact() else torch.float64
        neutral = {"ratio": 1.0, "difference": 0.0}.get(variant)
        self._main = self._mean(neutral)  # of the pairs where they are compared, of the unsafe side otherwise
        self._safe = self._mean(None) if variant == "ratio-of-means" else None
        columns = {"ratio": 3, "difference": 4}.get(variant, 2)
        self._waiting = self._rows(columns)  # norms of both sides and what column factors come to, or of one side
        self._waiting_safe = None if self._safe is None else self._rows(columns)
        self._found: torch.Tensor | None = None
        self._zero_columns = (self._weight == 0).all(0)  # [in]
        self.pairs = 0
        self._counts = torch.zeros(3, dtype=torch.int64, device=self._device)

    @property
    def guards(self) -> dict[str, int]:
        """Counts of what the score leaves neutral."""
        one, dead, constant = self._counts.tolist()
        return {
            "one_token_pairs": one,
            "dead_channels": dead,
            "constant_channels": constant,
            "zero_columns": int(self._zero_columns.sum()),
            "zero_rows": int((self._weight == 0).all(1).sum()),
        }

    def update(self, safe: TokenStatistics, unsafe: TokenStatistics) -> None:
        """Add one batch; row p of both sides is the same pair, but for the variants that compare no pairs.

        Raises:
            BadInput: The sides are of different length and the variant compares pairs.
        """
        assert self._found is None, "scores were made of the sums; nothing can be added any more"
        if self._variant in ("ratio", "difference") and len(safe.norm) != len(unsafe.norm):
            raise BadInput(
                f"a batch has {len(safe.norm)} safe and {len(unsafe.norm)} unsafe samples; the variant "
                f"{self._variant} compares pairs, ratio-of-means needs none"
            )
        with torch.autocast(self._device.type, enabled=False):
            if self._variant in ("ratio", "difference"):
                self._take_pairs(safe, unsafe)
            else:
                self._take(self._waiting, self._main, unsafe)
            if self._safe is not None and self._waiting_safe is not None:
                self._take(self._waiting_safe, self._safe, safe)
        self.pairs += len(unsafe.norm)

    def scores(self) -> torch.Tensor:
        """The scores, float32 [out, in], on the CPU. The sums become them: nothing can be added afterwards."""
        if self._found is None:
            with torch.autocast(self._device.type, enabled=False):
                self._add_waiting()
            self._found = self._scores().float().cpu()
            del self._main, self._safe, self._waiting, self._waiting_safe
        return self._found

    def _scores(self) -> torch.Tensor:
        score = self._main.value()
        if self._safe is not None:
            safe = self._safe.value()
            score = torch.where((safe > 0) & (score > 0), score / safe, 1)
        elif self._variant != "ratio":
            column_mean = self._weight.double().abs().mean(0)
            score = score.clamp_min(0) * (column_mean / self._weight.shape[1])
        return score.mul_(self._weight).abs_() if self._text else score  # · |W|, since scores are not negative

    def _mean(self, neutral: float | None) -> EntryMean:
        return EntryMean(self._weight, neutral, self._dtype)

    def _rows(self, columns: int) -> WaitingRows:
        out, width = self._weight.shape
        return WaitingRows(columns, max(self._sizes[0], out // 64), width, self._dtype, self._device)

    def _take_pairs(self, safe: TokenStatistics, unsafe: TokenStatistics) -> None:
        """Put pairs to those that wait: both norms, and the ratio of the column factors or both of them."""
        norms, factors = self._columns(safe, unsafe)
        fit = (factors > 0).all(0)
        if self._variant == "ratio":
            factors = (factors[1] / factors[0])[None]
        for full in self._waiting.add(*norms, *torch.where(fit, factors, 0)):
            self._add_pairs(*full)

    def _take(self, waiting: WaitingRows, mean: EntryMean, side: TokenStatistics) -> None:
        """Put samples of one side to those that wait."""
        norms, factors = self._columns(side)
        for norm, column in waiting.add(*norms, *factors):
            self._add_samples(mean, norm, column)

    def _add_waiting(self) -> None:
        rest = self._waiting.rest()
        if self._variant in ("ratio", "difference"):
            self._add_pairs(*rest)
        else:
            self._add_samples(self._main, *rest)
        if self._safe is not None and self._waiting_safe is not None:
            self._add_samples(self._safe, *self._waiting_safe.rest())

    def _add_pairs(self, norm_safe: torch.Tensor, norm_unsafe: torch.Tensor, *factors: torch.Tensor) -> None:
        """Add pairs by their norms and column factors, [pairs, in] each."""
        pairs = len(norm_safe)
        norms = torch.cat([norm_safe, norm_unsafe])
        for rows, magnitude in self._blocks():
            a = norms @ magnitude.T  # [2 pairs, rows]
            a_safe, a_unsafe = a[:pairs], a[pairs:]
            fit = (a_safe > 0) & (a_unsafe > 0)
            if self._variant == "ratio":
                self._main.add(rows, torch.where(fit, a_unsafe / a_safe, 0), factors[0])
            else:
                less = torch.where(fit, a_safe, 0), factors[0]
                self._main.add(rows, torch.where(fit, a_unsafe, 0), factors[1], less)
        self._main.count(pairs)

    def _add_samples(self, mean: EntryMean, norm: torch.Tensor, column: torch.Tensor) -> None:
        """Add samples of one side by their norms and column factors, [samples, in] each."""
        for rows, magnitude in self._blocks():
            mean.add(rows, norm @ magnitude.T, column)
        mean.count(len(norm))

    def _blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """|W|, some of its rows at a time: which, and [rows, in]."""
        block = self._sizes[1]
        for start in range(0, len(self._weight), block):
            rows = slice(start, start + block)
            yield rows, self._weight[rows].to(self._dtype).abs()

    def _columns(self, *sides: TokenStatistics) -> tuple[torch.Tensor, torch.Tensor]:
        """Norms and column factors b of φ, 0 where they say nothing, which is counted; [sides, samples, in] each.

        Row p of each side is the same pair.
        """
        norm = torch.stack([side.norm for side in sides]).to(self._device)
        std = torch.stack([side.std for side in sides]).to(self._device)
        spread, dead = _spread(norm, std), (norm == 0).any(0)
        one = torch.stack([side.tokens.to(self._device) < 2 for side in sides]).any(0)
        constant = ~(spread.all(0) | dead | one[:, None])
        self._counts += torch.stack([found.sum() for found in (one, dead, constant)])
        epsilon = 0.0 if self._text else VISION_EPSILON
        return norm, torch.where(spread & ~self._zero_columns, norm / (std + epsilon), 0)


class WaitingRows:
    """Rows that are handed on when there are enough of them, always equally many.

    Args:
        columns: How many values [in] a row has.
        room: How many rows are handed on.
        width: in.
        dtype, device: Of what is kept.
    """

    SUMS = ("_kept", "_count")

    def __init__(self, columns: int, room: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self._kept = torch.empty(columns, room, width, dtype=dtype, device=device)
        self._count = 0

    def add(self, *values: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
        """Take rows in, each of the values [rows, in]; gives views [room, in] whenever there are enough."""
        start, rows, room = 0, len(values[0]), self._kept.shape[1]
        while start < rows:
            taken = min(rows - start, room - self._count)
            for kept, value in zip(self._kept, values, strict=True):
                kept[self._count : self._count + taken] = value[start : start + taken]
            start, self._count = start + taken, self._count + taken
            if self._count == room:
                yield (*self._kept,)
                self._count = 0

    def rest(self) -> tuple[torch.Tensor, ...]:
        """What waits, [rows, in] each."""
        return (*self._kept[:, : self._count],)


class EntryMean:
    """The mean [out, in] over samples of a_i · b_j, where a product of 0 says nothing.

    Args:
        weight: W [out, in], for shape and device.
        neutral: What such a product counts as; None leaves it out of the mean, which is 0 where nothing is left.
        dtype: Of the sum.
    """

    SUMS = ("_sum", "_left_out", "_samples")

    def __init__(self, weight: torch.Tensor, neutral: float | None, dtype: torch.dtype) -> None:
        self._sum = torch.zeros(weight.shape, dtype=dtype, device=weight.device)
        self._neutral = neutral
        self._left_out: torch.Tensor | None = None  # [out, in] once there is any: most layers need none
        self._samples = 0

    def add(
        self, rows: slice, a: torch.Tensor, b: torch.Tensor, less: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> None:
        """Add samples to some rows by their factors, [samples, rows] and [samples, in], less those of the other side.

        When all rows have them, `count` says how many there were.
        """
        if less is None:
            self._sum[rows].addmm_(a.T, b)
        else:
            self._sum[rows] += a.T @ b - less[0].T @ less[1]  # so that equal sides leave no rounding in the sum
        fit_a, fit_b = a > 0, b > 0
        if self._neutral == 0 or (a.device.type == "cpu" and fit_a.all() and fit_b.all()):
            return
        silent = len(a) - fit_a.to(a.dtype).T @ fit_b.to(a.dtype)
        if self._neutral is not None:
            self._sum[rows] += self._neutral * silent
            return
        if self._left_out is None:
            self._left_out = torch.zeros_like(self._sum)
        self._left_out[rows] += silent

    def count(self, samples: int) -> None:
        """So many samples were added to all rows."""
        self._samples += samples

    def value(self) -> torch.Tensor:
        """The mean [out, in]; the sum becomes it."""
        if self._left_out is None:
            return self._sum.div_(self._samples)
        return self._sum.div_(self._left_out.neg_().add_(self._samples).clamp_min_(1))


def _spread(norm: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Whether a channel varies over the tokens by more than rounding."""
    return std > CONSTANT * norm


def _float32_is_exact() -> bool:
    """Whether products of float32 matrices are made in float32, not in a shorter format that a program may allow."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set by backend, which torch does not sum up
        return False
