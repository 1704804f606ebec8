"""Null-space projection: the embedding loses the span of unsafe text embeddings.

Mishra et al., "Erasing CLIP Memories", arXiv 2512.14137 (data-free class unlearning): with U an orthonormal basis of
the text embeddings to forget, the last projection becomes P ← (I − α U Uᵀ) P.

The term that keeps retained classes is written here in a form of our own: `without` takes from U what lies in the span
of the m leading directions S of the retained (safe) embeddings, U ← basis of (I − S Sᵀ) U. Then every embedding in the
span of S stays exactly as it was. It costs effect: of an unsafe embedding only what S does not explain is removed.
"""

from __future__ import annotations

import torch

from ...errors import BadInput, InvalidResult

TINY = 1e-6  # a direction of which less is left is rounding


def span(embeddings: torch.Tensor, rank: int) -> torch.Tensor:
    """An orthonormal basis of the leading directions of rows, by singular value decomposition.

    Args:
        embeddings: Normalised, [n, dim]; not centred: embeddings share a mean, and it is their first direction.
        rank: How many directions, at least 1.

    Returns:
        U, float64 [dim, k], the strongest direction first; k is less than `rank` where the rows span less.

    Raises:
        BadInput: A rank below 1, or no rows.
    """
    if rank < 1 or not len(embeddings):
        raise BadInput(f"a basis of rank {rank} of {len(embeddings)} embeddings: both must be at least 1")
    return leading(whole_span(embeddings), rank)


def whole_span(embeddings: torch.Tensor) -> torch.Tensor:
    """All directions that rows [n, dim] span, as rows, the strongest first: float64 [k, dim]."""
    _, values, directions = torch.linalg.svd(embeddings.double(), full_matrices=False)  # values descend
    return directions[: int((values > TINY * values[0]).sum())]


def leading(directions: torch.Tensor, rank: int) -> torch.Tensor:
    """The first of them as a basis [dim, up to rank]."""
    return directions[:rank].T.contiguous()


def without(basis: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis of what is left of a span when another one is taken from it.

    Args:
        basis: U [dim, k], orthonormal.
        kept: S [dim, m], orthonormal.

    Returns:
        float64 [dim, up to k], orthogonal to S; what differs most from S first.

    Raises:
        InvalidResult: Nothing is left: U lies in S.
    """
    basis, kept = basis.double(), kept.double()
    left, values, _ = torch.linalg.svd(basis - kept @ (kept.T @ basis), full_matrices=False)
    rest = left[:, values > TINY]  # the values are the sines of the angles between the two spans
    if not rest.shape[1]:
        raise InvalidResult(
            f"the {basis.shape[1]} unsafe directions lie in the span of the {kept.shape[1]} retained ones: nothing is "
            "left to remove; retain fewer or remove more"
        )
    return rest


def project_out(
    projection: torch.Tensor, basis: torch.Tensor, strength: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """P ← (I − α U Uᵀ) P as what is added: left · rightᵀ of rank k.

    Args:
        projection: P [dim, width], the last projection of a tower.
        basis: U [dim, k], orthonormal.
        strength: α; 1 removes the span from every embedding, 0 changes nothing.

    Returns:
        left [dim, k] and right [width, k], float64.
    """
    basis = basis.double()
    return -strength * basis, projection.double().T @ basis


def project_out_bias(bias: torch.Tensor, basis: torch.Tensor, strength: float = 1.0) -> torch.Tensor:
    """The new bias (I − α U Uᵀ) b of a projection that has one, float64 [dim]; arguments as `project_out`."""
    bias, basis = bias.double(), basis.double()
    return bias - strength * (basis @ (basis.T @ bias))
