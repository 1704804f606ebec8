"""Repel as it is said: normal equations of weighted rows, counted pairs, loops over samples; none of our code."""

from __future__ import annotations

import numpy as np

KAPPA, EMPTY, NOISE, REACH, FLAT = 6.0, 1e-5, 1e-12, 1e-5, 1e-4


def mean_and_std(safe, unsafe):
    """Of every feature, where a safe and an unsafe sample count 1 / (2 · number of their side)."""
    rows, weights = np.concatenate([safe, unsafe]), shares(len(safe), len(unsafe), 0.5, 0.5)
    mean = (weights[:, None] * rows).sum(0)
    return mean, np.sqrt((weights[:, None] * (rows - mean) ** 2).sum(0))


def shares(safe, unsafe, of_safe, of_unsafe):
    return np.concatenate([np.full(safe, of_safe / safe), np.full(unsafe, of_unsafe / unsafe)])


def least_std(safe, unsafe):
    """What every feature is divided by at least."""
    mean, std = mean_and_std(safe, unsafe)
    return np.array([max(FLAT * abs(m), FLAT * std.max(), 1e-12) for m in mean])


def ridge(safe, unsafe, safe_weight, penalty, least):
    """w, b by the normal equations of the design matrix [z, 1], a row a sample, and of √ρ I below it."""
    mean, std = mean_and_std(safe, unsafe)
    std = np.maximum(std, least)
    rows = (np.concatenate([safe, unsafe]) - mean) / std
    count, width = rows.shape
    design = np.zeros((count + width, width + 1))
    design[:count, :width], design[:count, width] = rows, 1
    design[count:, :width] = np.sqrt(penalty) * np.eye(width)
    target = np.concatenate([np.zeros(len(safe)), np.ones(len(unsafe)), np.zeros(width)])
    weights = np.diag(np.concatenate([shares(len(safe), len(unsafe), safe_weight, 1.0), np.ones(width)]))
    solution = np.linalg.solve(design.T @ weights @ design, design.T @ weights @ target)
    w = solution[:width] / std
    b = solution[width] - w @ mean
    level = np.mean([w @ x + b for x in unsafe])
    return w / level, b / level


def auc(high, low):
    """Of all pairs, the share in which the first is higher; of ties half."""
    won = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a in high for b in low)
    return won / (len(high) * len(low))


def detector(safe, unsafe, folds, safe_weight, penalties):
    """w, b, scores out of fold of both sides, AUC and penalty; folds are handed in."""
    least = least_std(safe, unsafe)
    found = []
    for penalty in sorted(penalties, reverse=True):  # of equal ones the strongest
        scores = np.zeros(len(safe)), np.zeros(len(unsafe))
        for fold in sorted({*folds[0], *folds[1]}):
            w, b = ridge(safe[folds[0] != fold], unsafe[folds[1] != fold], safe_weight, penalty, least)
            for x, own, score in zip((safe, unsafe), folds, scores, strict=True):
                for n in range(len(x)):
                    if own[n] == fold:
                        score[n] = w @ x[n] + b
        w, b = ridge(safe, unsafe, safe_weight, penalty, least)
        found.append((w, b, *scores, auc(scores[1], scores[0]), penalty))
    return max(found, key=lambda one: one[4])


def threshold(safe, share):
    """The least safe score that no more than the share of all is above."""
    return min(s for s in safe if sum(other > s for other in safe) <= share * len(safe) + 1e-9)


def jacobian(hidden, gain, projection, epsilon):
    """Mean of P diag(γ) (I − 11ᵀ/d − ĥĥᵀ/d) / std over what the last LayerNorm gets, [n, d]."""
    total = np.zeros(projection.shape)
    for h in hidden:
        d, std = len(h), np.sqrt(h.var() + epsilon)
        normal = (h - h.mean()) / std
        total += projection @ np.diag(gain) @ (np.eye(d) - np.ones((d, d)) / d - np.outer(normal, normal) / d) / std
    return total / len(hidden)


def empty_direction(embeddings, jacobians):
    """e by its second moment, summed sample by sample, and by the length of the steps that write its candidates."""
    moment, count = np.zeros((embeddings[0].shape[1],) * 2), 0
    for side in embeddings:
        for z in side:
            unit = z / np.linalg.norm(z)
            moment += np.outer(unit, unit)
            count += 1
    energy, vectors = np.linalg.eigh(moment / count)
    near = [value for value in energy if value <= 10 * energy[0] and (value <= 1e-3 or value == energy[0])]
    taken = max(sum(energy <= EMPTY) // 2, sum(energy <= NOISE), min(len(near), 8), 1)
    basis = vectors[:, :taken]
    writes = []
    for slope in jacobians:  # the step d that writes e is R e
        left, values, _ = np.linalg.svd(slope)
        values = np.concatenate([values, np.zeros(len(left) - len(values))])
        writes.append(np.diag(1 / np.maximum(values, REACH * values[0])) @ left.T)
    e = basis @ np.linalg.svd(np.concatenate(writes) @ basis)[2][-1]
    e = e if e[np.argmax(np.abs(e))] > 0 else -e
    return e, float(e @ moment @ e / count)


def push(slope, e):
    """The smallest d with J d = e, by the singular vectors of J that it can write."""
    left, values, right = np.linalg.svd(slope, full_matrices=False)
    d = sum(right[k] * (left[:, k] @ e) / values[k] for k in range(len(values)) if values[k] > REACH * values[0])
    return d / (e @ slope @ d)


def least_used(activations, w2):
    """Unit by unit, mean |g| over samples by the norm of its column: the least, and all of them."""
    carried = [
        np.mean([abs(g[j]) for g in activations]) * np.sqrt(sum(w2[i, j] ** 2 for i in range(len(w2))))
        for j in range(w2.shape[1])
    ]
    return int(np.argmin(carried)), carried


def unit(found, d, share, height):
    """Row, bias and column of the overwritten unit."""
    w, b, safe, unsafe, *_ = found
    theta = threshold(safe, share)
    over = [s - theta for s in unsafe if s > theta]
    slope = KAPPA / np.mean(over)
    return slope * w, slope * (b - theta), height / KAPPA * d
