"""A linear detector of the unsafe side, fitted in closed form and judged on pairs that it was not fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # of standardised features; the one of the best AUC out of fold is taken


@dataclass(frozen=True)
class Detector:
    """s(x) = w·x + b, with a mean of 1 on the unsafe side.

    Attributes:
        weight: w, float64 [d].
        bias: b.
        penalty: ρ.
        safe, unsafe: Scores [n] of both sides by detectors that were not fitted to the sample.
        auc: Chance that an unsafe score of these is above a safe one.
    """

    weight: torch.Tensor
    bias: float
    penalty: float
    safe: torch.Tensor
    unsafe: torch.Tensor
    auc: float


def fit_detector(
    safe: torch.Tensor,
    unsafe: torch.Tensor,
    folds: tuple[torch.Tensor, torch.Tensor],
    safe_weight: float,
    penalties: Sequence[float] = PENALTIES,
) -> Detector:
    """The ridge detector with the penalty that tells best out of fold.

    Args:
        safe, unsafe: Features, float64 [n, d] and [m, d].
        folds: The fold of every sample of both sides, int64 [n] and [m]; partners share one.
        safe_weight: λ.
        penalties: ρ to choose from.
    """
    count = int(max(side.max() for side in folds)) + 1
    sums = [moments(x, fold, count) for x, fold in zip((safe, unsafe), folds, strict=True)]
    found = [_cross_fitted((safe, unsafe), folds, sums, safe_weight, penalty) for penalty in penalties]
    return max(found, key=lambda detector: detector.auc)


def _cross_fitted(
    sides: tuple[torch.Tensor, torch.Tensor],
    folds: tuple[torch.Tensor, torch.Tensor],
    sums: list[torch.Tensor],
    safe_weight: float,
    penalty: float,
) -> Detector:
    scores = [torch.empty(len(x), dtype=x.dtype) for x in sides]
    for k in range(len(sums[0])):
        w, b = ridge(sums[0].sum(0) - sums[0][k], sums[1].sum(0) - sums[1][k], safe_weight, penalty)
        for x, fold, score in zip(sides, folds, scores, strict=True):
            score[fold == k] = x[fold == k] @ w + b
    w, b = ridge(sums[0].sum(0), sums[1].sum(0), safe_weight, penalty)
    return Detector(w, float(b), penalty, scores[0], scores[1], auc(scores[1], scores[0]))


def moments(x: torch.Tensor, fold: torch.Tensor, folds: int) -> torch.Tensor:
    """Second moments of [x, 1] summed by fold, [folds, d + 1, d + 1]: all that a fit needs of the data."""
    whole = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    return torch.stack([whole[fold == k].T @ whole[fold == k] for k in range(folds)])


def ridge(
    safe: torch.Tensor, unsafe: torch.Tensor, safe_weight: float, penalty: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """argmin λ E_safe (w·z + b)² + E_unsafe (w·z + b − 1)² + ρ ‖w‖² on standardised features z.

    Args:
        safe, unsafe: Summed second moments of [x, 1], [d + 1, d + 1].
        safe_weight: λ.
        penalty: ρ.

    Returns:
        w [d] and b [] for x itself, scaled so that the mean score of the unsafe side is 1.
    """
    safe, unsafe = safe / safe[-1, -1], unsafe / unsafe[-1, -1]
    both = (safe + unsafe) / 2
    mean = both[-1, :-1]
    std = (both.diagonal()[:-1] - mean.square()).clamp_min(0).sqrt() + 1e-8
    to_z = torch.diag(torch.cat([1 / std, torch.ones(1, dtype=std.dtype)]))  # [z, 1] = to_z · [x, 1]
    to_z[:-1, -1] = -mean / std
    gram = to_z @ (safe_weight * safe + unsafe) @ to_z.T
    gram.diagonal()[:-1] += penalty
    solution = torch.linalg.solve(gram, to_z @ unsafe[:, -1])
    w = solution[:-1] / std
    b = solution[-1] - w @ mean
    level = w @ unsafe[:-1, -1] + b
    return w / level, b / level


def auc(high: torch.Tensor, low: torch.Tensor) -> float:
    """Chance that a value of the first [n] is above one of the second [m]; of ties half."""
    ordered = low.sort().values
    below = torch.searchsorted(ordered, high, right=False).double()
    up_to = torch.searchsorted(ordered, high, right=True).double()
    return float(((below + up_to) / 2).mean() / len(low))


def draw_folds(count: int, folds: int, seed: int) -> torch.Tensor:
    """A fold for each of some pairs, of equal sizes, int64 [count]."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)) % min(folds, count)
