"""Safe-CLIP (Poppi et al., arXiv 2311.16254, ECCV 2024): unsafe items are drawn to their pair's safe ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..calibration import CalibrationPair
from ..embedding import Embeddings
from ..losses import contrastive, cosine_distance
from .protocol import TrainingSettings, frozen_batch

LAMBDAS = {  # as the paper's training program weighs them
    "keep_safe_text": 0.1,
    "keep_safe_image": 0.1,
    "redirect_unsafe_text": 0.1,
    "redirect_unsafe_image": 0.2,
    "match_safe_text": 0.25,
    "match_safe_image": 0.25,
    "match_unsafe_text": 0.25,
    "match_unsafe_image": 0.5,
}


# The λ are normalised to sum 1, and the total is the mean of the eight terms: the factors sum to 1/8.
FACTORS = {term: weight / sum(LAMBDAS.values()) / len(LAMBDAS) for term, weight in LAMBDAS.items()}
SETTINGS = TrainingSettings(epochs=50, train_batch=128, learning_rate=1e-3, weights=FACTORS)


def preservation(student: Embeddings, frozen: Embeddings) -> dict[str, torch.Tensor]:
    """What keeps safe items, both modalities: 1 − cosine to their own frozen embedding, and matching the other's.

    Args:
        student, frozen: Of the same rows, [batch, dim] each.
    """
    return {
        "keep_safe_text": cosine_distance(student.safe_text, frozen.safe_text),
        "keep_safe_image": cosine_distance(student.safe_image, frozen.safe_image),
        "match_safe_text": contrastive(student.safe_text, frozen.safe_image),
        "match_safe_image": contrastive(student.safe_image, frozen.safe_text),
    }


@dataclass(frozen=True, eq=False)
class SafeClipObjective:
    """Eight terms; the target of an unsafe item is its own pair's safe one, frozen, as of the same row."""

    frozen: Embeddings

    def rows(self, epoch: int) -> torch.Tensor:
        """All pairs in every epoch."""
        return torch.arange(len(self.frozen.safe_text))

    def terms(self, student: Embeddings, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """As `Objective.terms`."""
        frozen = frozen_batch(self.frozen, rows, student)
        return preservation(student, frozen) | {
            "redirect_unsafe_text": cosine_distance(student.unsafe_text, frozen.safe_text),
            "redirect_unsafe_image": cosine_distance(student.unsafe_image, frozen.safe_image),
            "match_unsafe_text": contrastive(student.unsafe_text, frozen.safe_image),
            "match_unsafe_image": contrastive(student.unsafe_image, frozen.safe_text),
        }


@dataclass(frozen=True)
class SafeClip:
    """The backend ``safe-clip``, with the hyper-parameters of the paper and of its training program."""

    name: str = "safe-clip"
    source: str = "Safe-CLIP (Poppi et al., arXiv 2311.16254, ECCV 2024)"
    settings: TrainingSettings = SETTINGS

    def objective(self, frozen: Embeddings, pairs: Sequence[CalibrationPair]) -> SafeClipObjective:
        """As `Backend.objective`."""
        return SafeClipObjective(frozen)


BACKEND = SafeClip()
