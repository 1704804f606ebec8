"""Experiment trackers: what a run is told to trackio, Weights & Biases, TensorBoard, or a plug-in's. No torch."""

from __future__ import annotations

from .following import following, note
from .trackers import Recording, Run, Tracker, find_tracker, tracker_names

__all__ = ["Recording", "Run", "Tracker", "find_tracker", "following", "note", "tracker_names"]
