"""The gradient baselines G-Unsafe and G-Safe-CLIP (UWM, section 5): pure losses on embeddings.

Scores are the mean over batches of |∂loss/∂W|, so unlike UWM's they depend on the batch size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..profiler import QuadrupleEmbeddings

LOGIT_SCALE = 4.6052  # log of CLIP's largest temperature, as in the authors' program


def cosine_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """1 − cosine of paired rows [n, dim], mean over the batch."""
    return 1 - F.cosine_similarity(a, b, dim=-1).mean()


def contrastive(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """CLIP's symmetric cross-entropy of paired rows [n, dim] with the fixed logit scale."""
    a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    logits = torch.exp(torch.tensor(LOGIT_SCALE, device=a.device)) * a @ b.T
    here = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, here) + F.cross_entropy(logits.T, here)) / 2


def grad_unsafe(own: QuadrupleEmbeddings, other: QuadrupleEmbeddings) -> torch.Tensor:
    """G-Unsafe: −(1 − cos(s, s')) + (1 − cos(s, u')), s the tower's safe side, s' and u' the other tower's.

    Args:
        own: The scored tower's safe and unsafe embeddings; only the safe side carries gradient.
        other: The other tower's, without gradient.
    """
    return cosine_distance(own.safe, other.unsafe) - cosine_distance(own.safe, other.safe)


def grad_safe_clip(own: QuadrupleEmbeddings, other: QuadrupleEmbeddings) -> torch.Tensor:
    """G-Safe-CLIP: CLIP loss(s, u') + (1 − cos(s, u)); arguments as `grad_unsafe`."""
    return contrastive(own.safe, other.unsafe) + cosine_distance(own.safe, own.unsafe)
