"""Scores of weight entries, as pure tensor maths. A new method is a new file and a row in METHODS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ..profiler import QuadrupleEmbeddings
from .gradient import grad_safe_clip, grad_unsafe
from .uwm import VARIANTS, UwmScorer


@dataclass(frozen=True)
class Method:
    """How weights are scored, and the paper's settings for choosing and editing entries.

    Attributes:
        mass: τ.
        alpha: What chosen entries are multiplied by.
        rules: Tower -> rule of `uwm.selection`.
        variants: Of the scorer, its default first.
        scorer: Made once a weight and fed with token statistics; or else
        loss: differentiated on embeddings, the scores being the mean absolute gradient.
    """

    mass: float
    alpha: float
    rules: dict[str, str] = field(default_factory=lambda: {"text": "top-mass", "vision": "top-mass"})
    variants: tuple[str, ...] = ()
    scorer: type[UwmScorer] | None = None
    loss: Callable[[QuadrupleEmbeddings, QuadrupleEmbeddings], torch.Tensor] | None = None


METHODS = {
    "uwm": Method(mass=0.02, alpha=-1.0, variants=VARIANTS, scorer=UwmScorer),
    # The two towers' rules differ in the authors' program; kept as it is there.
    "grad-unsafe": Method(0.035, 0.0, {"text": "top-fraction", "vision": "top-mass"}, loss=grad_unsafe),
    "grad-safe-clip": Method(0.005, 0.0, {"text": "top-fraction", "vision": "top-fraction"}, loss=grad_safe_clip),
}

__all__ = ["METHODS", "VARIANTS", "Method", "UwmScorer"]
