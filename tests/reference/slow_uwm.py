"""UWM's score as the paper writes it (Eq. 8–10): loops over pairs, rows and columns, float64, nothing cancelled."""

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


def uwm_score(pairs: list[tuple], w: list[list[float]], tower: str) -> list[list[float]]:
    """Mean over pairs of φ(unsafe) / φ(safe); 1 where either is zero or undefined; times |W| for text.

    `pairs` holds (safe x, unsafe x), each with only the tokens that count.
    """
    epsilon = 1e-8 if tower == "vision" else 0.0
    total = [[0.0] * len(w[0]) for _ in w]
    for safe, unsafe in pairs:
        phi_safe, phi_unsafe = saliency(safe, w, epsilon), saliency(unsafe, w, epsilon)
        for i in range(len(w)):
            for j in range(len(w[0])):
                below, above = phi_safe[i][j], phi_unsafe[i][j]
                total[i][j] += 1.0 if below is None or above is None else above / below
    factor = [[abs(v) if tower == "text" else 1.0 for v in row] for row in w]
    return [[total[i][j] / len(pairs) * factor[i][j] for j in range(len(w[0]))] for i in range(len(w))]
