"""SafeR-CLIP (Yousaf et al., arXiv 2511.16743, AAAI 2026): unsafe items go to the nearest safe ones, easy pairs first.

The paper's loss weights and the cuts of its curriculum are not public; here all terms weigh the same and the cuts are
terciles. Both are settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..calibration import CalibrationPair
from ..embedding import Embeddings
from ..losses import cosine_distance, relative_redirection
from .protocol import TrainingSettings, frozen_batch
from .safe_clip import preservation

TERMS = (
    "keep_safe_text",
    "keep_safe_image",
    "match_safe_text",
    "match_safe_image",
    "relative_unsafe_text",
    "relative_unsafe_image",
    "redirect_unsafe_text",
    "redirect_unsafe_image",
)
SETTINGS = TrainingSettings(epochs=9, train_batch=48, learning_rate=1e-4, patience=0, weights=dict.fromkeys(TERMS, 1.0))
CHUNK = 256  # unsafe captions at a time: 160 MB of similarities with the 160,000 captions of ViSU


def nearest(queries: torch.Tensor, candidates: torch.Tensor, chunk: int = CHUNK) -> torch.Tensor:
    """For each query the row of the most alike candidate, int64 [queries]; of equals, the first.

    Args:
        queries, candidates: Normalised, [n, dim] each.
        chunk: Queries at a time.
    """
    return torch.cat([(part @ candidates.T).argmax(1) for part in queries.split(chunk)])


@dataclass(frozen=True, eq=False)
class SaferClipObjective:
    """Eight terms.

    Attributes:
        frozen: Of all pairs, [n, dim] each.
        targets: Pair -> the pair whose safe caption t̂ and picture v̂ its unsafe side goes to, int64 [n].
        easy_first: All pairs, those with the most alike captions first, int64 [n].
        stages: How many of them epoch 1, 2, … trains on; later epochs train on all.
    """

    frozen: Embeddings
    targets: torch.Tensor
    easy_first: torch.Tensor
    stages: tuple[int, ...]

    def rows(self, epoch: int) -> torch.Tensor:
        """The curriculum: the most alike pairs alone, then more, then all."""
        return self.easy_first[: self.stages[epoch - 1]] if epoch <= len(self.stages) else self.easy_first

    def terms(self, student: Embeddings, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """As `Objective.terms`."""
        own = frozen_batch(self.frozen, rows, student)
        target = frozen_batch(self.frozen, self.targets[rows], student)
        text, image = student.unsafe_text, student.unsafe_image
        return preservation(student, own) | {
            "relative_unsafe_text": relative_redirection(text, own.unsafe_image, target.safe_image),
            "relative_unsafe_image": relative_redirection(image, own.unsafe_text, target.safe_text),
            "redirect_unsafe_text": cosine_distance(text, target.safe_text),
            "redirect_unsafe_image": cosine_distance(image, target.safe_image),
        }


@dataclass(frozen=True)
class SaferClip:
    """The backend ``safer-clip``, with the hyper-parameters of the paper where they are public.

    Attributes:
        nearest: The target of an unsafe caption is the nearest safe caption of all pairs in the frozen text space;
            otherwise that of its own pair, as Safe-CLIP has it: the ablation ``safer-clip-fixed``.
        cuts: The curriculum's: which share of the pairs epoch 1, 2, … trains on.
    """

    name: str = "safer-clip"
    source: str = "SafeR-CLIP (Yousaf et al., arXiv 2511.16743, AAAI 2026)"
    settings: TrainingSettings = SETTINGS
    nearest: bool = True
    cuts: tuple[float, ...] = (1 / 3, 2 / 3)

    def objective(self, frozen: Embeddings, pairs: Sequence[CalibrationPair]) -> SaferClipObjective:
        """As `Backend.objective`; the targets are chosen here, once."""
        n = len(frozen.safe_text)
        targets = nearest(frozen.unsafe_text, frozen.safe_text) if self.nearest else torch.arange(n)
        alike = F.cosine_similarity(frozen.safe_text, frozen.unsafe_text, dim=1)
        easy_first = alike.argsort(descending=True, stable=True)
        return SaferClipObjective(frozen, targets, easy_first, tuple(max(1, round(cut * n)) for cut in self.cuts))


BACKEND = SaferClip()
FIXED = SaferClip(name="safer-clip-fixed", source=f"{BACKEND.source}, redirected to fixed pairs", nearest=False)
