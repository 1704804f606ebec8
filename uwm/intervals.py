"""Means of figures with 95 % intervals, and exact tests of paired changes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch

DRAWN = 1 << 14  # rows that are drawn at a time


def shares(
    samples: Mapping[str, torch.Tensor], seed: int, repeats: int = 1000
) -> dict[str, tuple[float, float, float]]:
    """`bootstrap` of shares, with the exact binomial bound where resampling is blind: for none of n, and for all.

    Args:
        samples: Name -> values [n] within 0–1, one a query, of which a figure is the mean.
        seed: For the resampling.
        repeats: How many resamples.

    Returns:
        Name -> (mean, low, high): for none of n (0, 0, 1 − 0.025^(1/n)), for all (1, 0.025^(1/n), 1) (Clopper and
        Pearson, Biometrika 1934), else what `bootstrap` returns.
    """
    found = bootstrap(samples, seed, repeats)
    for name, values in samples.items():
        bound = 0.025 ** (1 / len(values))
        found[name] = {0.0: (0.0, 0.0, 1 - bound), 1.0: (1.0, bound, 1.0)}.get(found[name][0], found[name])
    return found


@lru_cache(maxsize=4096)
def paired_p(gained: int, lost: int) -> float:
    """Two-sided p-value of the exact test that as many of the same queries fall as rise.

    For figures of 0 or 1 a query this is McNemar's test in its exact form (Psychometrika 1947); where a query is worth
    more values, such as the mean of two directions, the sign test (Dixon and Mood, JASA 1946).

    Args:
        gained, lost: Queries whose value rose, and fell.
    """
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values adjusted for so many looks (Holm, Scandinavian Journal of Statistics 1979).

    Rejecting what is at most α keeps the chance of any false rejection among them at most α.

    Args:
        p_values: Name -> p-value.
    """
    adjusted, highest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def changes(
    samples: Mapping[str, torch.Tensor], seed: int, repeats: int = 1000
) -> dict[str, tuple[float, float, float]]:
    """`bootstrap` of paired changes, widened where resampling is blind because few queries changed.

    Args:
        samples: Name -> changes [n] within −1–1, one a query.
        seed, repeats: As in `bootstrap`.

    Returns:
        Name -> (mean, low, high): what `bootstrap` returns, but at least b = 1 − 0.025^(1/n) to each side of the mean,
        the share of changing queries that would go unseen so often; and with 0 where the exact test says that the
        change may be chance (`paired_p` over 0.05).
    """
    found = bootstrap(samples, seed, repeats)
    for name, values in samples.items():
        mean, low, high = found[name]
        bound = 1 - 0.025 ** (1 / len(values))
        low, high = max(-1.0, min(low, mean - bound)), min(1.0, max(high, mean + bound))
        if paired_p(int((values > 0).sum()), int((values < 0).sum())) > 0.05:
            low, high = min(low, 0.0), max(high, 0.0)
        found[name] = (mean, low, high)
    return found


def bootstrap(
    samples: Mapping[str, torch.Tensor], seed: int, repeats: int = 1000
) -> dict[str, tuple[float, float, float]]:
    """Means with percentile bootstrap 95 % intervals; every figure is resampled with the same rows.

    Quadruples with equal values are counted as one kind: a resample of many then costs little more than its draws.

    Args:
        samples: Name -> values [n], one a quadruple.
        seed: For the resampling.
        repeats: How many resamples.

    Returns:
        Name -> (mean, low, high).
    """
    names = list(samples)
    values = np.stack([samples[name].double().cpu().numpy() for name in names], 1)  # [n, figures]
    rng, n = np.random.default_rng(seed), len(values)
    kinds, kind_of = np.unique(values, axis=0, return_inverse=True)  # [kinds, figures], [n]
    kind_of = kind_of.ravel()  # of two dimensions in NumPy 2.0
    means = np.empty((repeats, len(names)))
    some = max(1, DRAWN // n)
    for start in range(0, repeats, some):
        own = np.arange(min(some, repeats - start))
        drawn = kind_of[rng.integers(n, size=(len(own), n))] + len(kinds) * own[:, None]  # [resamples, n]
        counts = np.bincount(drawn.ravel(), minlength=len(own) * len(kinds)).reshape(len(own), -1)
        means[start : start + len(own)] = [count @ kinds / n for count in counts]
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return {f: (float(m), float(a), float(b)) for f, m, a, b in zip(names, values.mean(0), low, high, strict=True)}
