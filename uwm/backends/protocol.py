"""What a fine-tuning backend is: its paper's settings and a loss on embeddings; training is the same for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from ..calibration import CalibrationPair
from ..evaluate import Embeddings

ADAPTED = ("k_proj", "v_proj", "out_proj", "fc1", "fc2", "patch_embedding")  # of the HF layout, in both towers


@dataclass(frozen=True)
class TrainingSettings:
    """How a backend trains; its own are its paper's, every one of them can be overridden.

    Attributes:
        epochs: At most this many passes over the pairs.
        train_batch: Pairs a step; the contrastive terms see all of them at once, whatever `micro_batch` says.
        learning_rate: Of Adam.
        patience: Stop after this many epochs without a better validation result; 0 never stops early.
        stop_on: What is validated: ``"loss"`` (the total, lower is better) or ``"recall"`` (sum of R@1, higher).
        rank, lora_alpha, dropout, targets: LoRA's, as in `peft.LoraConfig`; layers by their name in the HF layout.
        weights: Loss term -> its factor.
    """

    epochs: int
    train_batch: int
    learning_rate: float
    weights: dict[str, float]
    patience: int = 5
    stop_on: str = "loss"
    rank: int = 16
    lora_alpha: float = 1.0
    dropout: float = 0.1
    targets: tuple[str, ...] = field(default=ADAPTED)


class Objective(Protocol):
    """The loss of one training run, made once from the frozen model's embeddings of all pairs."""

    def rows(self, epoch: int) -> torch.Tensor:
        """Which pairs epoch 1, 2, … trains on, int64 [n], in any order; a curriculum leaves some out."""

    def terms(self, student: Embeddings, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """The loss by named term, each a scalar before its factor.

        Args:
            student: Normalised embeddings of a batch with gradient, [batch, dim] each, float32.
            rows: Which pairs these are, int64 [batch], on the CPU.
        """


class Backend(Protocol):
    """A fine-tuning method. Plug-ins name an object of this kind under the entry point group ``uwm.backends``.

    Attributes:
        name: As on the command line.
        source: The paper, as the report cites it.
        settings: The paper's.
    """

    name: str
    source: str
    settings: TrainingSettings

    def objective(self, frozen: Embeddings, pairs: Sequence[CalibrationPair]) -> Objective:
        """The loss for these pairs.

        Args:
            frozen: Normalised embeddings of every pair by the unadapted model, float32 [n, dim] each; they carry no
                gradient and share nothing with the student.
            pairs: The pairs, row for row.
        """
