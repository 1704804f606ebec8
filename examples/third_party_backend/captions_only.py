"""A backend that moves unsafe captions only: onto their pair's safe caption; safe captions stay where they are."""

from dataclasses import dataclass

import torch

from uwm.backends import TrainingSettings, frozen_batch
from uwm.losses import cosine_distance

WEIGHTS = {"redirect": 1.0, "keep": 1.0}
SETTINGS = TrainingSettings(epochs=5, train_batch=64, learning_rate=1e-3, weights=WEIGHTS)


@dataclass(frozen=True)
class CaptionsOnly:
    """An `uwm.backends.Backend`: a name, what the report cites, settings, and the loss."""

    name: str = "captions-only"
    source: str = "uwm's example of a third-party backend"
    settings: TrainingSettings = SETTINGS

    def objective(self, frozen, pairs):
        return Loss(frozen)


class Loss:
    """An `uwm.backends.Objective`; pictures get no gradient, so their tower stays as it was."""

    def __init__(self, frozen):
        self.frozen = frozen

    def rows(self, epoch):
        return torch.arange(len(self.frozen.safe_text))

    def terms(self, student, rows):
        target = frozen_batch(self.frozen, rows, student).safe_text
        return {
            "redirect": cosine_distance(student.unsafe_text, target),
            "keep": cosine_distance(student.safe_text, target),
        }


BACKEND = CaptionsOnly()
