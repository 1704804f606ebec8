"""Fine-tuning methods to compare the edit with, one file each, found by the entry point group ``uwm.backends``."""

from __future__ import annotations

from .protocol import ADAPTED, Backend, Objective, TrainingSettings

__all__ = ["ADAPTED", "Backend", "Objective", "TrainingSettings"]
