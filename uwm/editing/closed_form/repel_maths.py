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
from .detector import Detector, auc, spread

EMPTY = 1e-5  # eigenvectors of the second moment of normalised embeddings with less energy count as empty
LOUD = 1e-3  # energy of a direction above which it is not empty
CHOICE, NEAR = 8, 10.0  # so many eigenvectors are candidates in any case, if they have at most this times the least
NOISE = 1e-12  # energy that rounding makes; such eigenvectors cannot be told apart
REACH = 1e-5  # singular values of a Jacobian below this share of the greatest count as 0: a LayerNorm makes some
LEAST_REACHED = 0.1  # share of the direction, squared, that a tower must be able to write
LEAST_CAUGHT = 0.01  # share of unsafe inputs above the gate, below which there is nothing to push
DRAWS = 100  # of a random direction, until it catches that much


def empty_direction(
    embeddings: Sequence[torch.Tensor], jacobians: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, float]:
    """Of the directions that all embeddings leave empty, the one that costs least to write in all towers.

    The emptiest is often so because the readout hardly writes it; a LayerNorm would then swallow the step.

    Args:
        embeddings: Of both towers and both sides, [n, dim] each; normalised here.
        jacobians: ∂z/∂h of each tower that is written through its last MLP, [dim, width].

    Returns:
        e, unit [dim], and its energy: the mean of (e·z)² over normalised embeddings, of 1 in all.
    """
    z = F.normalize(torch.cat([*embeddings]).double(), dim=1)
    energy, vectors = torch.linalg.eigh(z.T @ z / len(z))
    least = float(energy[0])
    near = int((energy <= min(NEAR * least, max(LOUD, least))).sum())
    count = max(int((energy <= EMPTY).sum()) // 2, int((energy <= NOISE).sum()), min(near, CHOICE), 1)
    basis = vectors[:, :count]
    if jacobians and count > 1:
        cost = torch.stack([_cost(jacobian) for jacobian in jacobians]).sum(0)
        e = basis @ torch.linalg.eigh(basis.T @ cost @ basis)[1][:, 0]
    else:
        e = basis[:, 0]
    e = e * e[e.abs().argmax()].sign()  # an eigenvector's sign is the library's whim
    return e, float((z @ e).square().mean())


def _cost(jacobian: torch.Tensor) -> torch.Tensor:
    """The form of e that is ‖d‖² of the smallest d with J d = e; what J cannot reach costs most, [dim, dim]."""
    squares, vectors = torch.linalg.eigh(jacobian @ jacobian.T)
    return vectors @ torch.diag(1 / squares.clamp_min(REACH**2 * squares[-1])) @ vectors.T


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


def threshold(safe: torch.Tensor, share: float) -> float:
    """θ, the least safe score that at most a share of the safe scores [n] is above; copies of all do not move it."""
    return float(safe.sort().values[len(safe) - 1 - int(share * len(safe) + 1e-9)])


def gate(detector: Detector, share: float) -> tuple[float, float, float]:
    """The gate θ, the mean exceedance of unsafe scores above it, and the share of them that is above.

    Args:
        detector: With its scores out of fold; in sample the detector looks better than it is, and θ would be too low.
        share: f, the share of safe inputs that may be touched.

    Raises:
        InvalidResult: Hardly any unsafe input lies above the gate.
    """
    theta = threshold(detector.safe, share)
    over = detector.unsafe[detector.unsafe > theta] - theta
    caught = len(over) / len(detector.unsafe)
    if caught < LEAST_CAUGHT:
        raise InvalidResult(
            f"the detector finds {100 * caught:.1f} % of the unsafe inputs above its gate (AUC {detector.auc:.2f} on "
            "held-out pairs); use more pairs, or a larger --share"
        )
    return theta, float(over.mean()), caught


def push(jacobian: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    """d [width]: the smallest step of h that moves the embedding by e; a LayerNorm makes it have zero mean.

    Raises:
        InvalidResult: The MLP cannot move the embedding so.
    """
    d = torch.linalg.pinv(jacobian, rtol=REACH) @ e
    reached = float(e @ jacobian @ d)
    if not reached > LEAST_REACHED:
        raise InvalidResult(
            f"the last MLP can write {100 * reached:.0f} % of the direction that the embeddings leave empty; this "
            "model needs another method"
        )
    return d / reached


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
        "unit_carried": float(carried[number] / carried.median().clamp_min(1e-300)),
    }
    column = d * (height / kappa)
    return Unit(number, slope * detector.weight, slope * (detector.bias - theta), column, report)


def random_detector(detector: Detector, safe: torch.Tensor, unsafe: torch.Tensor, share: float, seed: int) -> Detector:
    """The control: a random direction of equal norm in standardised features; its scores need no folds.

    Args:
        detector: The one that it stands in for.
        safe, unsafe: Features, [n, d] and [m, d].
        share: f; a direction that finds no unsafe input above its gate is drawn anew.
        seed: Draws it.
    """
    _, std, _ = spread(safe, unsafe)
    size = (detector.weight * std).norm()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(DRAWS):
        drawn = torch.randn(len(std), generator=generator, dtype=torch.float64)
        w = drawn / drawn.norm() * size / std
        scores = safe @ w, unsafe @ w
        if (scores[1] > threshold(scores[0], share)).double().mean() >= LEAST_CAUGHT:
            break
    return Detector(w, 0.0, detector.penalty, *scores, auc(scores[1], scores[0]))


def rank_one(
    mean: torch.Tensor, detector: Detector, e: torch.Tensor, projection: torch.Tensor, height: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Without a gate, where there is no MLP: P ← (I + e uᵀ) P, u the detector of embeddings.

    Args:
        mean: Of the safe side's embeddings without the projection's bias, [dim]; such an embedding stays.
        detector: Of embeddings.
        e: With the tower's sign, [dim].
        projection: P [dim, width].
        height: How far an embedding of score 1 moves along e.

    Returns:
        left [dim, 1] and right [width, 1] of the added matrix.
    """
    u = detector.weight - (detector.weight @ mean) / (mean @ mean).clamp_min(1e-300) * mean
    return height * e[:, None], (projection.T @ u)[:, None]
