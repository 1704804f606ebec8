"""Repel: a hidden unit a tower that detects the unsafe side and pushes captions and images apart (ours).

Pure functions on float64 tensors. An embedding is z = f(h), h = r + W₂ g(W₁ x + b₁) + b₂ at the pooled token, where f
is a LayerNorm with a projection, or nothing. One hidden unit j is overwritten so that

    g(κ' (w·x + b − θ)) ≈ κ' (w·x + b − θ)₊

is the detector's score above a gate θ, and its column of W₂ moves h by ± c·d with J d = e: along e, a direction that
the embeddings of both towers leave empty. Captions go one way, images the other, so an unsafe caption no longer meets
an unsafe image, and inputs below the gate stay where they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ...errors import InvalidResult
from .detector import Detector, auc

EMPTY = 1e-5  # eigenvectors of the second moment of normalised embeddings with less energy count as empty
LEAST_CAUGHT = 0.01  # share of unsafe inputs above the gate, below which there is nothing to push


def empty_direction(
    embeddings: Sequence[torch.Tensor], jacobians: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, float]:
    """Of the directions that all embeddings leave empty, the one that costs least to write in all towers.

    Args:
        embeddings: Of both towers and both sides, [n, dim] each; normalised here.
        jacobians: ∂z/∂h of each tower that is written through its last MLP, [dim, width].

    Returns:
        e, unit [dim], and its energy: the mean of (e·z)² over normalised embeddings, of 1 in all.
    """
    z = F.normalize(torch.cat([*embeddings]).double(), dim=1)
    energy, vectors = torch.linalg.eigh(z.T @ z / len(z))
    basis = vectors[:, : max(1, int((energy <= EMPTY).sum()) // 2)]
    if jacobians and basis.shape[1] > 1:
        cost = torch.stack([torch.linalg.pinv(jacobian @ jacobian.T) for jacobian in jacobians]).sum(0)
        e = basis @ torch.linalg.eigh(basis.T @ cost @ basis)[1][:, 0]
    else:
        e = basis[:, 0]
    return e, float((z @ e).square().mean())


@dataclass(frozen=True)
class Unit:
    """What one overwritten hidden unit holds.

    Attributes:
        number: j.
        row, bias: Its row of W₁ [width] and its entry of b₁.
        column: Its column of W₂ [width].
        report: Quality on held-out folds, and what the unit carried before.
    """

    number: int
    row: torch.Tensor
    bias: float
    column: torch.Tensor
    report: dict[str, Any]


def gate(detector: Detector, share: float) -> tuple[float, float, float]:
    """The gate θ, the mean exceedance of unsafe scores above it, and the share of them that is above.

    Args:
        detector: With its scores out of fold; in sample the detector looks better than it is, and θ would be too low.
        share: f, the share of safe inputs that may be touched.

    Raises:
        InvalidResult: Hardly any unsafe input lies above the gate.
    """
    theta = float(torch.quantile(detector.safe, 1 - share))
    over = detector.unsafe[detector.unsafe > theta] - theta
    caught = len(over) / len(detector.unsafe)
    if caught < LEAST_CAUGHT:
        raise InvalidResult(
            f"the detector finds {100 * caught:.1f} % of the unsafe inputs above its gate (AUC {detector.auc:.2f} on "
            "held-out pairs); use more pairs, or a larger --share"
        )
    return theta, float(over.mean()), caught


def push(jacobian: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    """d [width]: the smallest step of h that moves the embedding by e; a LayerNorm makes it have zero mean."""
    d = torch.linalg.pinv(jacobian) @ e
    return d / (e @ jacobian @ d)


def least_used(activations: torch.Tensor, w2: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden units that matter least on the safe side: mean |g_j| · ‖W₂[:, j]‖ is smallest.

    Args:
        activations: g of the safe side, [n, hidden].
        w2: W₂ [width, hidden].
        count: How many.

    Returns:
        Their numbers [count], and what every unit carries, [hidden].
    """
    carried = activations.abs().mean(0) * w2.norm(dim=0)
    return carried.argsort(stable=True)[:count], carried


def make_unit(
    detector: Detector, d: torch.Tensor, carried: torch.Tensor, number: int, share: float, height: float, kappa: float
) -> Unit:
    """The unit that pushes what a detector finds.

    Args:
        detector: Of inputs x of W₁.
        d: The step of h that moves the embedding by one unit of length along e, with the tower's sign, [width].
        carried: What every unit carries, [hidden].
        number: Which one is overwritten.
        share: f.
        height: How far the mean exceedance of unsafe inputs moves the embedding along e.
        kappa: κ, the unit's input at that exceedance: how near the activation is to a ramp.
    """
    theta, reach, caught = gate(detector, share)
    slope = kappa / reach
    report = {
        "detector_auc": detector.auc,
        "penalty": detector.penalty,
        "safe_touched": float((detector.safe > theta).double().mean()),
        "unsafe_caught": caught,
        "unit": number,
        "unit_carried": float(carried[number] / carried.median()),
    }
    column = d * (height / kappa)
    return Unit(number, slope * detector.weight, slope * (detector.bias - theta), column, report)


def random_detector(detector: Detector, safe: torch.Tensor, unsafe: torch.Tensor, seed: int) -> Detector:
    """The control: a random direction of equal norm in standardised features; its scores need no folds.

    Args:
        detector: The one that it stands in for.
        safe, unsafe: Features, [n, d] and [m, d].
    """
    std = torch.cat([safe, unsafe]).std(0)
    drawn = torch.randn(len(std), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    size = (detector.weight * std).norm()
    w = drawn / drawn.norm() * size / std.clamp_min(1e-12)
    scores = safe @ w, unsafe @ w
    return Detector(w, 0.0, detector.penalty, *scores, auc(scores[1], scores[0]))


def rank_one(
    safe: torch.Tensor, detector: Detector, e: torch.Tensor, projection: torch.Tensor, height: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Without a gate, where there is no MLP: P ← (I + e uᵀ) P, u the detector of embeddings.

    Args:
        safe: Embeddings of the safe side as the projection makes them, [n, dim].
        detector: Of embeddings.
        e: With the tower's sign, [dim].
        projection: P [dim, width].
        height: How far an embedding of score 1 moves along e.

    Returns:
        left [dim, 1] and right [width, 1] of the added matrix.
    """
    mean = safe.mean(0)
    u = detector.weight - (detector.weight @ mean) / (mean @ mean) * mean  # so that the mean safe embedding stays
    return height * e[:, None], (projection.T @ u)[:, None]
