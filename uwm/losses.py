"""Losses on batches of paired embeddings, shared by the gradient baselines and the fine-tuning backends; all pure.

Rows [n, dim] belong together by position. No rows give zero, with its zero gradient, so that a batch without rows of a
kind says nothing and does no harm.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

LOGIT_SCALE = 4.6052  # log of CLIP's largest temperature, as in the authors' program


def _mean(values: torch.Tensor) -> torch.Tensor:
    return values.sum() / max(len(values), 1)


def cosine_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """1 − cosine of paired rows [n, dim], mean over the batch."""
    return _mean(1 - F.cosine_similarity(a, b, dim=-1))


def contrastive(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """CLIP's symmetric cross-entropy of paired rows [n, dim], halved, with the fixed logit scale."""
    if not len(a):
        return (a * b).sum()
    a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    logits = math.exp(LOGIT_SCALE) * a @ b.T
    here = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, here) + F.cross_entropy(logits.T, here)) / 2


def relative_redirection(moved: torch.Tensor, away: torch.Tensor, towards: torch.Tensor) -> torch.Tensor:
    """log(1 + exp(cos(moved, away) − cos(moved, towards))) of rows [n, dim], mean over the batch (SafeR-CLIP)."""
    gap = F.cosine_similarity(moved, away, dim=-1) - F.cosine_similarity(moved, towards, dim=-1)
    return _mean(F.softplus(gap))
