"""Random embeddings of eleven pairs with labels, batches of them, and the backends that are tested on them."""

from __future__ import annotations

from dataclasses import fields

import torch
import torch.nn.functional as F
from reference import slow_losses

from uwm.backends import safe_clip, safer_clip, shield_clip
from uwm.calibration import CalibrationPair
from uwm.embedding import Embeddings

SIDES = [side.name for side in fields(Embeddings)]
N, DIM = 11, 6
BACKENDS = {b.name: b for b in (safe_clip.BACKEND, safer_clip.BACKEND, safer_clip.FIXED, shield_clip.BACKEND)}
TEXT_LABELS = ["unsafe", "safe", "unsafe", "unsafe", "safe", "unsafe", "unsafe", "unsafe", "safe", "unsafe", "unsafe"]
IMAGE_LABELS = ["unsafe", "unsafe", "safe", "unsafe", "safe", "unsafe", "safe", "unsafe", "unsafe", "safe", "unsafe"]
LABELLED = [
    CalibrationPair(str(i), unsafe_text_label=text, unsafe_image_label=image)
    for i, (text, image) in enumerate(zip(TEXT_LABELS, IMAGE_LABELS, strict=True))
]
BATCHES = {"five": [7, 0, 4, 2, 9], "one": [3], "no unsafe item": [4], "no safe item": [5, 0, 7], "all": [*range(N)]}


def embeddings(n, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.randn(n, DIM, generator=generator, dtype=torch.float64) for _ in SIDES)
    return Embeddings(*(F.normalize(side, dim=1).to(dtype) for side in drawn))


def with_gradient(student):
    return Embeddings(*(getattr(student, side).clone().requires_grad_() for side in SIDES))


def plain(sides):
    return slow_losses.Sides(*(getattr(sides, side).tolist() for side in SIDES))


FROZEN = embeddings(N, seed=1)
