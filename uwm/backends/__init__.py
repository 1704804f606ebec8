"""Fine-tuning methods to compare the edit with, one file each, found by the entry point group ``uwm.backends``."""

from __future__ import annotations

from .plugins import find_backends
from .protocol import ADAPTED, Backend, Objective, TrainingSettings, frozen_batch

__all__ = ["ADAPTED", "Backend", "Objective", "TrainingSettings", "find_backends", "frozen_batch"]
