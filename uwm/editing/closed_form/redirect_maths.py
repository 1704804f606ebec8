"""Redirection: a matrix learns, by ridge regression, to write the safe partner's residual stream.

With inputs a of the matrix W, the residual stream r after it and the safe partner's stream r̂, for matrices that write
to the residual stream (out_proj, fc2):

    W′ = argmin Σ_u ‖W′a_u − (W a_u + r̂ − r_u)‖² + λ Σ_s ‖W′a_s − W a_s‖² + ρ ‖W′ − W‖²

over unsafe inputs u and safe inputs s. For D = W′ − W this is a ridge regression of the steps r̂ − r_u on a_u; W drops
out. It is exact from sums over rows: with G = Σ a aᵀ on each side and C = Σ_u a_u (r̂ − r_u)ᵀ,

    D (G_u + λ G_s + ρ I) = Cᵀ.

The same ridge solution edits key–value memories in ROME (arXiv 2202.05262) and MEMIT (arXiv 2210.07229).
"""

from __future__ import annotations

import torch

from ...errors import BadInput


def normal_matrix(
    unsafe_gram: torch.Tensor, safe_gram: torch.Tensor | None, *, keep: float, ridge: float
) -> torch.Tensor:
    """K = G_u + λ G_s + ρ I, float64 [in, in].

    Args:
        unsafe_gram: G_u [in, in], a sum or a mean over rows. λ and ρ are on that scale.
        safe_gram: G_s [in, in], likewise; None where there are no safe rows.
        keep: λ ≥ 0, the weight of the safe side.
        ridge: ρ > 0, which makes the solution unique.

    Raises:
        BadInput: λ < 0 or ρ ≤ 0.
    """
    if keep < 0 or not ridge > 0:
        raise BadInput(f"redirection needs a weight of the safe side ≥ 0 and a ridge > 0, not {keep:g} and {ridge:g}")
    gram = unsafe_gram.double()
    if safe_gram is not None:
        gram = gram + keep * safe_gram.double()
    return gram + ridge * torch.eye(len(gram), dtype=torch.float64, device=gram.device)


def redirection(normal: torch.Tensor, unsafe_cross: torch.Tensor) -> torch.Tensor:
    """D = Cᵀ K⁻¹, what is added to W, float64 [out, in].

    Args:
        normal: K [in, in], from `normal_matrix`.
        unsafe_cross: C = Σ_u a_u (r̂ − r_u)ᵀ [in, out], a sum or a mean as the Gram matrices are.
    """
    return torch.cholesky_solve(unsafe_cross.double(), torch.linalg.cholesky(normal)).T.contiguous()


def low_rank(change: torch.Tensor, normal: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The best redirection of lower rank (reduced-rank regression, Izenman 1975).

    The objective at D + E is that at D plus tr(E K Eᵀ). So the best change of rank k is Q Qᵀ D, with Q the k leading
    eigenvectors of D K Dᵀ.

    Args:
        change: D [out, in].
        normal: K [in, in], which D was solved with.
        rank: k ≥ 1; a greater one than D has is cut to it.

    Returns:
        left [out, k] and right [in, k], float64, whose product left · rightᵀ is the change; and the share of the gain
        tr(D K Dᵀ) that is kept, 1 where there is none.
    """
    gain = change @ normal @ change.T  # [out, out]
    values, vectors = torch.linalg.eigh((gain + gain.T) / 2)  # ascending
    values = values.clamp_min(0)
    there = int((values > 1e-14 * values[-1]).sum())
    rank = max(1, min(rank, there))
    left = vectors[:, -rank:].flip(1)
    total = float(values.sum())
    return left, change.T @ left, float(values[-rank:].sum()) / total if total else 1.0
