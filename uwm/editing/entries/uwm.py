"""The UWM score and its ablations in their exact rank-one form (UWM, section 4, Eq. 8–10)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from ...errors import BadInput
from ...statistics.channel_norms import TokenStatistics
from ...statistics.products import product
from ...weights import WeightId
from .columns import column_factors, forms_on
from .editor import VARIANTS

VISION_EPSILON = 1e-8  # added to σ in the vision tower only
ROOM, BLOCK = 12, 256  # samples that wait at least; rows of W at a time
ON_DEVICE = 128, 8192  # the same on an accelerator, whose operations cost little more on more rows


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
    one product: batch sizes do not matter. |W| is made `BLOCK` rows at a time. On an accelerator both are larger, and
    nothing waits for its results. Of ratios factors and sums are float32, as the scores are: a product rounds by 1e-7
    of the sum, at random. The other variants, whose φ can be of any size and cancel, keep them in float64.

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
        self._room, self._block = (ROOM, BLOCK) if self._device.type == "cpu" else ON_DEVICE
        self._text = weight_id.tower == "text"
        self._epsilon = 0.0 if self._text else VISION_EPSILON
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
        return WaitingRows(columns, max(self._room, out // 64), width, self._dtype, self._device)

    def _take_pairs(self, safe: TokenStatistics, unsafe: TokenStatistics) -> None:
        """Put pairs to those that wait: both norms, and the ratio of the column factors or both of them."""
        if self._variant == "ratio":
            put_ratios, _ = forms_on(self._device)
            for rows, room in self._waiting.room_for(len(safe.norm), self._add_pairs):
                sides = (TokenStatistics(side.norm[rows], side.std[rows], side.tokens[rows]) for side in (safe, unsafe))
                put_ratios(*sides, self._zero_columns, self._epsilon, room, self._counts)
        else:
            norms, factors = self._columns(safe, unsafe)
            self._waiting.add(self._add_pairs, *norms, *torch.where((factors > 0).all(0), factors, 0))

    def _take(self, waiting: WaitingRows, mean: EntryMean, side: TokenStatistics) -> None:
        """Put samples of one side to those that wait."""
        norms, factors = self._columns(side)
        waiting.add(partial(self._add_samples, mean), *norms, *factors)

    def _add_waiting(self) -> None:
        rest = self._waiting.rest()
        if self._variant in ("ratio", "difference"):
            self._add_pairs(rest)
        else:
            self._add_samples(self._main, rest)
        if self._safe is not None and self._waiting_safe is not None:
            self._add_samples(self._safe, self._waiting_safe.rest())

    def _add_ratios(self, kept: torch.Tensor) -> None:
        """Add pairs by what `put_ratios` kept [3, pairs, in], in few operations: for an accelerator."""
        _, put_factors = forms_on(self._device)
        magnitude = self._weight.to(self._dtype).abs()
        a = (kept[:2].flatten(0, 1) @ magnitude.T).unflatten(0, (2, kept.shape[1]))  # [2, pairs, out]
        self._main.add_pairs(put_factors, a, kept)

    def _add_pairs(self, kept: torch.Tensor) -> None:
        """Add pairs by their norms, safe and unsafe, and column factors [3 or 4, pairs, in]; `kept` may change."""
        if self._variant == "ratio" and self._device.type != "cpu":
            return self._add_ratios(kept)
        norms, *columns = kept[:2], *kept[2:]
        if self._variant == "difference":  # a product of no difference is 0, while equal rows of one may round apart
            norms = torch.cat([norms, (norms[1] - norms[0])[None]])
        a = self._row_sums(norms.flatten(0, 1)).unflatten(0, norms.shape[:2])  # [2 or 3, pairs, out]
        fit = (a[0] > 0) & (a[1] > 0)
        if self._variant == "ratio":
            self._main.add(torch.where(fit, a[1] / a[0], 0), columns[0])
        else:  # a₁b₁ − a₀b₀ = (a₁ − a₀) b₁ + a₀ (b₁ − b₀)
            self._main.add(torch.where(fit, a[2], 0), columns[1])
            self._main.add(torch.where(fit, a[0], 0), columns[1] - columns[0])
        self._main.count(kept.shape[1])

    def _add_samples(self, mean: EntryMean, kept: torch.Tensor) -> None:
        """Add samples of one side by their norms and column factors [2, samples, in]."""
        norm, column = kept
        mean.add(self._row_sums(norm), column)
        mean.count(len(norm))

    def _row_sums(self, norms: torch.Tensor) -> torch.Tensor:
        """(|W| n)_i of norms [samples, in], [samples, out]; some rows of W at a time."""
        blocks = self._weight.split(self._block)
        return torch.cat([product(norms, rows.to(self._dtype).abs()) for rows in blocks], 1)

    def _columns(self, *sides: TokenStatistics) -> tuple[torch.Tensor, torch.Tensor]:
        """`column_factors` of this weight."""
        return column_factors(sides, self._zero_columns, self._epsilon, self._counts)


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

    def room_for(self, rows: int, full: Callable[[torch.Tensor], None]) -> Iterator[tuple[slice, torch.Tensor]]:
        """Where to write rows, part by part: which of them, and their room [columns, part, in].

        Whenever there are enough, `full` is called with all of them, [columns, room, in].
        """
        start, room = 0, self._kept.shape[1]
        while start < rows:
            taken = min(rows - start, room - self._count)
            yield slice(start, start + taken), self._kept[:, self._count : self._count + taken]
            start, self._count = start + taken, self._count + taken
            if self._count == room:
                full(self._kept)
                self._count = 0

    def add(self, full: Callable[[torch.Tensor], None], *values: torch.Tensor) -> None:
        """Take rows in, each of the values [rows, in]; `full` as in `room_for`."""
        for rows, room in self.room_for(len(values[0]), full):
            for kept, value in zip(room, values, strict=True):
                kept[:] = value[rows]

    def rest(self) -> torch.Tensor:
        """What waits, [columns, rows, in]."""
        return self._kept[:, : self._count]


class EntryMean:
    """The mean [out, in] over samples of a_i · b_j, where a product of 0 says nothing.

    Args:
        weight: W [out, in], for shape and device.
        neutral: What such a product counts as; None leaves it out of the mean, which is 0 where nothing is left.
        dtype: Of the sum.
    """

    SUMS = ("_sum", "_left_out", "_silent_rows", "_samples")

    def __init__(self, weight: torch.Tensor, neutral: float | None, dtype: torch.dtype) -> None:
        self._sum = torch.zeros(weight.shape, dtype=dtype, device=weight.device)
        self._neutral = neutral
        self._silent_rows = torch.zeros(len(weight), dtype=dtype, device=weight.device)  # samples with a_i = 0
        self._left_out: torch.Tensor | None = None  # [out, in] once there is any: most layers need none
        self._samples = 0

    def add(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Add samples by their factors, [samples, out] and [samples, in]; `count` says how many there were."""
        self._sum.addmm_(a.T, b)
        if self._neutral == 0:
            return
        if a.device.type == "cpu" and a.all() and b.all():
            return
        fit_a, fit_b = a.sign(), b.sign()
        if self._neutral is not None:  # of products of 0, those of rows with a > 0 now, those of other rows in `value`
            self._sum.addmm_(fit_a.T, 1 - fit_b, alpha=self._neutral)
            self._silent_rows += (1 - fit_a).sum(0)
            return
        if self._left_out is None:
            self._left_out = torch.zeros_like(self._sum)
        self._left_out.add_(len(a)).addmm_(fit_a.T, fit_b, alpha=-1)

    def add_pairs(self, put_factors: Callable[..., None], a: torch.Tensor, kept: torch.Tensor) -> None:
        """Add pairs to all rows by one product; `columns.put_factors` says of what, and changes both."""
        put_factors(a, kept, self._silent_rows)
        self._sum.addmm_(a.flatten(0, 1).T, kept[1:].flatten(0, 1))
        self.count(kept.shape[1])

    def count(self, samples: int) -> None:
        """So many samples were added to all rows."""
        self._samples += samples

    def value(self) -> torch.Tensor:
        """The mean [out, in]; the sum becomes it."""
        if self._neutral:
            self._sum += self._neutral * self._silent_rows[:, None]
        if self._left_out is None:
            return self._sum.div_(self._samples)
        return self._sum.div_(self._left_out.neg_().add_(self._samples).clamp_min_(1))


def _float32_is_exact() -> bool:
    """Whether products of float32 matrices are made in float32, not in a shorter format that a program may allow."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set by backend, which torch does not sum up
        return False
