"""Scores of weight entries, as pure tensor maths. A new method is a new file and a row in METHODS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ...statistics.gradients import QuadrupleEmbeddings
from .gradients import grad_safe_clip, grad_unsafe
from .uwm import VARIANTS, UwmScorer


@dataclass(frozen=True)
class Method:
    """How weights are scored, and the paper's settings for choosing and editing entries.

    Attributes:
        title: As the model card names it.
        mass: τ.
        alpha: What chosen entries are multiplied by.
        rules: Tower -> rule of `uwm.editing.entries.selection`.
        variants: Of the scorer, its default first.
        scorer: Made once a weight and fed with token statistics; or else
        loss: differentiated on embeddings, the scores being the mean absolute gradient.
    """

    title: str
    mass: float
    alpha: float
    rules: dict[str, str] = field(default_factory=lambda: {"text": "top-mass", "vision": "top-mass"})
    variants: tuple[str, ...] = ()
    scorer: type[UwmScorer] | None = None
    loss: Callable[[QuadrupleEmbeddings, QuadrupleEmbeddings], torch.Tensor] | None = None


METHODS = {
    "uwm": Method(
        "Unsafe Weights Manipulation (UWM, WACV 2026)", mass=0.02, alpha=-1.0, variants=VARIANTS, scorer=UwmScorer
    ),
    # The two towers' rules differ in the authors' program; kept as it is there.
    "grad-unsafe": Method(
        "the gradient baseline G-Unsafe (UWM, WACV 2026)",
        mass=0.035,
        alpha=0.0,
        rules={"text": "top-fraction", "vision": "top-mass"},
        loss=grad_unsafe,
    ),
    "grad-safe-clip": Method(
        "the gradient baseline G-Safe-CLIP (UWM, WACV 2026)",
        mass=0.005,
        alpha=0.0,
        rules={"text": "top-fraction", "vision": "top-fraction"},
        loss=grad_safe_clip,
    ),
}

__all__ = ["METHODS", "VARIANTS", "Method", "UwmScorer"]
