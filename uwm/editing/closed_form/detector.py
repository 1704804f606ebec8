"""A linear detector of the unsafe side, fitted in closed form and judged on pairs that it was not fitted to."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...calibration.groups import connected

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # of standardised features; the one of the best AUC out of fold is taken
FLAT = 1e-4  # a standard deviation below this share of a feature's mean, or of the greatest one, is no more than noise


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
    """The ridge detector with the penalty that tells best out of fold, of equally good ones the first.

    Args:
        safe, unsafe: Features, float64 [n, d] and [m, d].
        folds: The fold of every sample of both sides, int64 [n] and [m]; partners share one, and each side has some
            samples outside of every fold.
        safe_weight: λ.
        penalties: ρ to choose from.
    """
    mean, _, least = spread(safe, unsafe)
    sides = safe - mean, unsafe - mean  # so that second moments lose no digits to a mean far from 0
    count = int(max(side.max() for side in folds)) + 1
    sums = [moments(x, fold, count) for x, fold in zip(sides, folds, strict=True)]
    found = [_cross_fitted(sides, folds, sums, mean, least, safe_weight, penalty) for penalty in penalties]
    return max(found, key=lambda detector: detector.auc)


def spread(safe: torch.Tensor, unsafe: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean and standard deviation [d] of features, of both sides alike, and the least deviation that counts."""
    mean = (safe.mean(0) + unsafe.mean(0)) / 2
    std = (((safe - mean).square().mean(0) + (unsafe - mean).square().mean(0)) / 2).sqrt()
    least = (FLAT * torch.maximum(mean.abs(), std.max())).clamp_min(1e-12)
    return mean, torch.maximum(std, least), least


def _cross_fitted(
    sides: tuple[torch.Tensor, torch.Tensor],
    folds: tuple[torch.Tensor, torch.Tensor],
    sums: list[torch.Tensor],
    mean: torch.Tensor,
    least: torch.Tensor,
    safe_weight: float,
    penalty: float,
) -> Detector:
    scores = [torch.empty(len(x), dtype=x.dtype) for x in sides]
    for k in range(len(sums[0])):
        w, b = ridge(sums[0].sum(0) - sums[0][k], sums[1].sum(0) - sums[1][k], safe_weight, penalty, least)
        for x, fold, score in zip(sides, folds, scores, strict=True):
            score[fold == k] = x[fold == k] @ w + b
    w, b = ridge(sums[0].sum(0), sums[1].sum(0), safe_weight, penalty, least)
    return Detector(w, float(b - w @ mean), penalty, scores[0], scores[1], auc(scores[1], scores[0]))


def moments(x: torch.Tensor, fold: torch.Tensor, folds: int) -> torch.Tensor:
    """Second moments of [x, 1] summed by fold, [folds, d + 1, d + 1]: all that a fit needs of the data."""
    whole = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    return torch.stack([whole[fold == k].T @ whole[fold == k] for k in range(folds)])


def ridge(
    safe: torch.Tensor, unsafe: torch.Tensor, safe_weight: float, penalty: float, least: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """argmin λ E_safe (w·z + b)² + E_unsafe (w·z + b − 1)² + ρ ‖w‖² on standardised features z.

    Args:
        safe, unsafe: Summed second moments of [x, 1], [d + 1, d + 1].
        safe_weight: λ.
        penalty: ρ.
        least: What every feature is divided by at least, [d].

    Returns:
        w [d] and b [] for x itself, scaled so that the mean score of the unsafe side is 1.
    """
    safe, unsafe = safe / safe[-1, -1], unsafe / unsafe[-1, -1]
    both = (safe + unsafe) / 2
    mean = both[-1, :-1]
    std = torch.maximum((both.diagonal()[:-1] - mean.square()).clamp_min(0).sqrt(), least)
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


def fold_keys(pairs: Sequence[tuple[bytes, bytes]]) -> tuple[list[bytes], bool]:
    """What identifies each pair for `draw_folds`, given its two inputs, whichever is safe.

    Returns:
        Keys that are equal for pairs which share an input, or are connected by such pairs; and True. Where more than
        half of the different pairs are so connected there are no folds to speak of: then keys that are equal for equal
        pairs only, and False.
    """
    keys = [min(pair) + max(pair) for pair in pairs]
    members: dict[int, set[bytes]] = {}
    groups = connected(pairs)
    for group, key in zip(groups, keys, strict=True):
        members.setdefault(group, set()).add(key)
    biggest, every = max(map(len, members.values()), default=0), len({*keys})
    if biggest > 1 and 2 * biggest > every:
        return keys, False
    first = {group: min(different) for group, different in members.items()}
    return [first[group] for group in groups], True


def draw_folds(keys: Sequence[bytes], groups: Sequence[str], folds: int, seed: int) -> torch.Tensor:
    """A fold for each sample, int64 [n], by what it is and not by where it stands; equal ones share theirs.

    Args:
        keys: What identifies each sample.
        groups: The group of each; every one is spread evenly over the folds.
        folds: How many, if there are so many different samples.
        seed: Draws them.
    """
    drawn = {pair: hashlib.sha256(b"%d " % seed + pair[1]).digest() for pair in zip(groups, keys, strict=True)}
    ordered = sorted(drawn, key=lambda pair: (pair[0], drawn[pair]))
    place = {pair: number % min(folds, len(ordered)) for number, pair in enumerate(ordered)}
    return torch.tensor([place[pair] for pair in zip(groups, keys, strict=True)], dtype=torch.long)
