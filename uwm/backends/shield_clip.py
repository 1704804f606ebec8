"""ShieldCLIP (arXiv 2609.39688, 2026): a generated item that is safe in truth is preserved, the others are redirected.

The paper gives one factor for each of five losses. Where it does not say how a loss joins the two modalities, it is
their mean here, each modality's being the mean over its own rows. A row takes part in the contrastive losses of the
unsafe branch, as anchor and as negative, only where the generated item is labelled unsafe; for coherence both must be.
The batch size is not public; 128 is Safe-CLIP's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..calibration import CalibrationPair
from ..embedding import Embeddings
from ..losses import contrastive, cosine_distance
from .protocol import TrainingSettings, frozen_batch

FACTORS = {
    "preserve_real": 0.1,
    "preserve_generated_safe": 0.1,
    "redirect": 0.1,
    "mixed": 0.25,
    "coherence": 0.25,
}
SETTINGS = TrainingSettings(epochs=50, train_batch=128, learning_rate=1e-4, weights=FACTORS)


@dataclass(frozen=True, eq=False)
class ShieldClipObjective:
    """Five terms; the real items are the pairs' safe sides, the generated ones their unsafe sides.

    Attributes:
        frozen: Of all pairs, [n, dim] each.
        text_unsafe, image_unsafe: Whether a pair's generated caption and picture are labelled unsafe, bool [n].
    """

    frozen: Embeddings
    text_unsafe: torch.Tensor
    image_unsafe: torch.Tensor

    def rows(self, epoch: int) -> torch.Tensor:
        """All pairs in every epoch."""
        return torch.arange(len(self.frozen.safe_text))

    def terms(self, student: Embeddings, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """As `Objective.terms`; `mixed` holds the student's safe branch behind a stop-gradient."""
        frozen = frozen_batch(self.frozen, rows, student)
        text = self.text_unsafe[rows].to(student.unsafe_text.device)
        image = self.image_unsafe[rows].to(student.unsafe_image.device)
        both = text & image
        return {
            "preserve_real": _mean(
                cosine_distance(student.safe_text, frozen.safe_text),
                cosine_distance(student.safe_image, frozen.safe_image),
            ),
            "preserve_generated_safe": _mean(
                cosine_distance(student.unsafe_text[~text], frozen.unsafe_text[~text]),
                cosine_distance(student.unsafe_image[~image], frozen.unsafe_image[~image]),
            ),
            "redirect": _mean(
                cosine_distance(student.unsafe_text[text], frozen.safe_text[text]),
                cosine_distance(student.unsafe_image[image], frozen.safe_image[image]),
            ),
            "mixed": _mean(
                contrastive(student.unsafe_text[text], student.safe_image[text].detach()),
                contrastive(student.unsafe_image[image], student.safe_text[image].detach()),
            ),
            "coherence": contrastive(student.unsafe_text[both], student.unsafe_image[both]),
        }


def _mean(text: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    return (text + image) / 2


@dataclass(frozen=True)
class ShieldClip:
    """The backend ``shield-clip``, with the hyper-parameters of the paper where they are public."""

    name: str = "shield-clip"
    source: str = "ShieldCLIP (arXiv 2609.39688, 2026)"
    settings: TrainingSettings = SETTINGS

    def objective(self, frozen: Embeddings, pairs: Sequence[CalibrationPair]) -> ShieldClipObjective:
        """As `Backend.objective`; the labels are the pairs'."""
        text = torch.tensor([pair.unsafe_text_label == "unsafe" for pair in pairs])
        image = torch.tensor([pair.unsafe_image_label == "unsafe" for pair in pairs])
        return ShieldClipObjective(frozen, text, image)


BACKEND = ShieldClip()
