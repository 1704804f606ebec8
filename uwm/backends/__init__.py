"""Fine-tuning methods to compare the edit with, one file each, found by the entry point group ``uwm.backends``."""

from __future__ import annotations

from .lora import Adapter, write_trained
from .plugins import find_backends
from .protocol import ADAPTED, Backend, Computing, Objective, TrainingSettings, frozen_batch
from .training import Trained, train

__all__ = [
    "ADAPTED",
    "Adapter",
    "Backend",
    "Computing",
    "Objective",
    "Trained",
    "TrainingSettings",
    "find_backends",
    "frozen_batch",
    "train",
    "write_trained",
]
