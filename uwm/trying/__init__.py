"""What one caption or image finds, before and after an edit: `uwm try`."""

from __future__ import annotations

from .page import try_page
from .running import Hit, Tried, TryRecipe, run_try

__all__ = ["Hit", "Tried", "TryRecipe", "run_try", "try_page"]
