"""The closed forms as they are said: least squares over stacked rows, loops over entries, dense projections."""

from __future__ import annotations

import statistics

import torch


def redirection(unsafe, steps, safe, keep, ridge):
    """D [out, in] that minimises the objective, from its rows: unsafe [n, in], steps [n, out], safe [m, in]."""
    width, out = unsafe.shape[1], steps.shape[1]
    rows = torch.cat([unsafe, keep**0.5 * safe, ridge**0.5 * torch.eye(width, dtype=torch.float64)])
    targets = torch.cat([steps, torch.zeros(len(safe) + width, out, dtype=torch.float64)])
    return torch.linalg.lstsq(rows, targets).solution.T


def objective(change, unsafe, steps, safe, keep, ridge):
    """Σ_u ‖D a_u − step_u‖² + λ Σ_s ‖D a_s‖² + ρ ‖D‖², a row at a time."""
    total = ridge * float(change.square().sum())
    for a, step in zip(unsafe, steps, strict=True):
        total += float((change @ a - step).square().sum())
    for a in safe:
        total += keep * float((change @ a).square().sum())
    return total


def ablated(weight, unit, strength):
    """(I − strength · r rᵀ) W, entry by entry."""
    rows, columns = weight.shape
    result = torch.zeros(rows, columns, dtype=torch.float64)
    for i in range(rows):
        for j in range(columns):
            along = sum(float(unit[k]) * float(weight[k, j]) for k in range(rows))
            result[i, j] = float(weight[i, j]) - strength * float(unit[i]) * along
    return result


def orthonormal(vectors):
    """Gram–Schmidt over rows [n, dim] -> [up to n, dim]; rows that say nothing new are left out."""
    basis = []
    for vector in vectors:
        rest = vector.clone()
        for _ in range(2):  # twice is enough (Kahan)
            for unit in basis:
                rest = rest - (rest @ unit) * unit
        if rest.norm() > 1e-8 * vector.norm():
            basis.append(rest / rest.norm())
    return torch.stack(basis)


def effect_sizes(safe, unsafe):
    """Mean of the differences by their standard deviation, unit by unit; 0 where they do not vary."""
    found = []
    for unit in range(safe.shape[1]):
        differences = [float(u) - float(s) for s, u in zip(safe[:, unit], unsafe[:, unit], strict=True)]
        spread = statistics.stdev(differences)
        found.append(statistics.fmean(differences) / spread if spread else 0.0)
    return found
