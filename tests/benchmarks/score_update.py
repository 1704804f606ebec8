"""The rank-one score update against the three [batch, out, in] tensors that the formula suggests.

    python tests/benchmarks/score_update.py

One layer's update at the size of ViT-B/32's fc2, measured in turn in one run; prints the ratios of time and memory.
"""

from __future__ import annotations

import statistics
import time

import torch

from uwm.editing.entries.uwm import UwmScorer
from uwm.statistics.channel_norms import TokenStatistics
from uwm.weights import WeightId

OUT, IN, BATCH, ROUNDS = 768, 3072, 32, 5


def statistics_of(seed: int) -> TokenStatistics:
    generator = torch.Generator().manual_seed(seed)
    norm, std = (torch.rand(BATCH, IN, generator=generator, dtype=torch.float64) + 0.1 for _ in range(2))
    return TokenStatistics(norm, std, torch.full((BATCH,), 50))


def naive(weight: torch.Tensor, safe: TokenStatistics, unsafe: TokenStatistics) -> torch.Tensor:
    """φ of both sides written out (Eq. 8 and 9) in float32, and their ratio summed over the batch."""

    def saliency(side: TokenStatistics) -> torch.Tensor:
        magnitude, norm, std = weight.abs(), side.norm.float(), side.std.float()
        rows = (norm @ magnitude.T / IN)[:, :, None]  # [batch, out, 1]
        columns = norm[:, None, :] * magnitude.mean(0)  # [batch, 1, in]
        return rows * columns / (std[:, None, :] + 1e-8)  # [batch, out, in]

    return (saliency(unsafe) / saliency(safe)).sum(0)


def main() -> None:
    weight = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0))
    safe, unsafe = statistics_of(1), statistics_of(2)
    scorer = UwmScorer(WeightId("vision", 0, "fc2"), weight)
    checked = UwmScorer(WeightId("vision", 0, "fc2"), weight)
    checked.update(safe, unsafe)
    torch.testing.assert_close(checked.scores() * BATCH, naive(weight, safe, unsafe), rtol=1e-4, atol=0)
    times: dict[str, list[float]] = {"rank one": [], "naive": []}
    for _ in range(ROUNDS):
        for name, update in (
            ("rank one", lambda: scorer.update(safe, unsafe)),
            ("naive", lambda: naive(weight, safe, unsafe)),
        ):
            start = time.perf_counter()
            update()
            times[name].append(time.perf_counter() - start)
    ratio = statistics.median(b / a for a, b in zip(times["rank one"], times["naive"], strict=True))
    print(f"naive / rank one, time: {ratio:.1f}× (median of {ROUNDS})")
    print(f"largest tensor: naive {BATCH * OUT * IN * 4 / 1e6:.0f} MB, rank one {OUT * IN * 4 / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
