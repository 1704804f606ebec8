"""Scores of weight entries, as pure tensor maths. A new method is a new file and a name in SCORERS."""

from .uwm import UwmScorer

SCORERS = {"uwm": UwmScorer}

__all__ = ["SCORERS", "UwmScorer"]
