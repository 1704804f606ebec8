"""The gradient baselines G-Unsafe and G-Safe-CLIP (UWM, section 5): pure losses on embeddings.

Scores are the mean over batches of |∂loss/∂W|, so unlike UWM's they depend on the batch size.
"""

from __future__ import annotations

import torch

from ...losses import contrastive, cosine_distance
from ...statistics.gradients import QuadrupleEmbeddings


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
