"""What a fine-tuning backend is: its paper's settings, and a loss on embeddings. Training is the same for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Protocol

import torch

from ..calibration import CalibrationPair
from ..embedding import Embeddings
from ..statistics.batches import BATCH_SIZE

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


@dataclass(frozen=True)
class Computing:
    """How a training uses the machine.

    Attributes:
        dtype: What the towers compute in, ``float32`` or ``bfloat16``; LoRA's matrices and Adam stay float32.
        micro_batch: Pairs that are in the towers at once, for less memory; the gradients stay the whole batch's.
        checkpointing: Recompute activations in the backward pass, for less memory.
        batch_size: Pairs at a time where no gradient is needed.
        workers: Threads that read pictures.
    """

    dtype: str = "auto"
    micro_batch: int | None = None
    checkpointing: bool = False
    batch_size: int = BATCH_SIZE
    workers: int = 2


class Objective(Protocol):
    """The loss of one training run, made once from the frozen model's embeddings of all pairs."""

    def rows(self, epoch: int) -> torch.Tensor:
        """Which pairs epoch 1, 2, … trains on, int64 [n], in any order; a curriculum leaves some out."""

    def terms(self, student: Embeddings, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """The loss by named term, each a scalar before its factor; the total is the sum of factor × term.

        The names are those of the settings' weights, the same for every batch: a term that no row of a batch bears on
        is zero. A side of the student that no term uses gets no gradient.

        Args:
            student: Normalised embeddings of a batch with gradient, [batch, dim] each, float32.
            rows: Which pairs these are, int64 [batch], on the CPU.
        """


class Backend(Protocol):
    """A fine-tuning method. Plug-ins name an object of this kind under the entry point group ``uwm.backends``."""

    @property
    def name(self) -> str:
        """As on the command line; the entry point's name is the same."""

    @property
    def source(self) -> str:
        """The paper, as the report cites it."""

    @property
    def settings(self) -> TrainingSettings:
        """The paper's."""

    def objective(self, frozen: Embeddings, pairs: Sequence[CalibrationPair]) -> Objective:
        """The loss for these pairs; validation pairs have one of their own.

        Args:
            frozen: Normalised embeddings of every pair by the unadapted model, float32 [n, dim] each; they carry no
                gradient and share nothing with the student.
            pairs: The pairs, row for row.
        """


def frozen_batch(frozen: Embeddings, rows: torch.Tensor, student: Embeddings) -> Embeddings:
    """Some rows of the frozen embeddings, [batch, dim], without gradient, where the student's are and of their type."""
    sides = {side.name: getattr(frozen, side.name)[rows].detach() for side in fields(Embeddings)}
    return Embeddings(**{name: side.to(student.safe_text) for name, side in sides.items()})
