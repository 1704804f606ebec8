"""UWM's score (Eq. 8–10) and its variants as they are said: loops over pairs, rows, columns; nothing cancelled."""

from __future__ import annotations

import math


def saliency(x: list[list[float]], w: list[list[float]], epsilon: float) -> list[list[float | None]]:
    """φ [out][in] of one sample x [tokens][in]; None where it is zero or undefined."""
    tokens, width = len(x), len(w[0])
    norm, std = [], []
    for j in range(width):
        channel = [row[j] for row in x]
        norm.append(math.sqrt(sum(v * v for v in channel)))
        mean = sum(channel) / tokens
        same = max(channel) - min(channel) <= 1e-6 * norm[j]
        spread = None if tokens < 2 or same else math.sqrt(sum((v - mean) ** 2 for v in channel) / (tokens - 1))
        std.append(spread)
    phi = []
    for i in range(len(w)):
        row_mean = sum(norm[k] * abs(w[i][k]) for k in range(width)) / width
        line: list[float | None] = []
        for j in range(width):
            column_mean = sum(norm[j] * abs(w[k][j]) for k in range(len(w))) / len(w)
            value = None if std[j] is None else row_mean * column_mean / (std[j] + epsilon)
            line.append(value or None)
        phi.append(line)
    return phi


def entry_score(safe: list[float | None], unsafe: list[float | None], variant: str) -> float:
    """One entry's score before the prior, from its φ of every sample, None where it is zero or undefined."""
    if variant == "ratio":
        return mean([1.0 if s is None or u is None else u / s for s, u in zip(safe, unsafe, strict=True)])
    if variant == "log-ratio":  # a scorer of its own, not a variant of UWM's
        logs = [0.0 if s is None or u is None else math.log(u / s) for s, u in zip(safe, unsafe, strict=True)]
        return math.exp(mean(logs))
    if variant == "difference":
        return max(0.0, mean([0.0 if s is None or u is None else u - s for s, u in zip(safe, unsafe, strict=True)]))
    below, above = (mean([value for value in side if value is not None]) for side in (safe, unsafe))
    if variant == "unsafe-only":
        return above
    return above / below if above and below else 1.0


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def uwm_score(
    safe: list[list], unsafe: list[list], w: list[list[float]], tower: str, variant: str = "ratio"
) -> list[list[float]]:
    """Scores [out][in] of samples x of both sides, each with only the tokens that count; times |W| for text."""
    epsilon = 1e-8 if tower == "vision" else 0.0
    phi_safe = [saliency(x, w, epsilon) for x in safe]
    phi_unsafe = [saliency(x, w, epsilon) for x in unsafe]
    scores = []
    for i in range(len(w)):
        row = []
        for j in range(len(w[0])):
            score = entry_score([phi[i][j] for phi in phi_safe], [phi[i][j] for phi in phi_unsafe], variant)
            row.append(score * abs(w[i][j]) if tower == "text" else score)
        scores.append(row)
    return scores
