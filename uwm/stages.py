"""The named stages of a run, told to whoever shows its progress, if that can show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Staged(Protocol):
    """A progress (see `uwm.score`) that shows stages, too."""

    def plan(self, stages: Mapping[str, float]) -> None:
        """Which stages will come, and how long each takes beside the others."""

    def stage(self, name: str, steps: int) -> None:
        """A stage begins, in which so many iterables will be wrapped."""

    def finish(self) -> None:
        """The last stage is done."""


def plan(progress: Any, stages: Mapping[str, float]) -> None:
    """Tell which stages will come, see `Staged.plan`; a stage of weight 0 does not come."""
    if isinstance(progress, Staged):
        progress.plan({name: weight for name, weight in stages.items() if weight})


def stage(progress: Any, name: str, steps: int = 1) -> None:
    """Tell that a stage begins, see `Staged.stage`."""
    if isinstance(progress, Staged):
        progress.stage(name, steps)


def note(progress: Any, text: str) -> None:
    """Tell a user something at once, by ``progress.note(text)`` if there is such a method."""
    if (tell := getattr(progress, "note", None)) is not None:
        tell(text)


def finish(progress: Any) -> None:
    """Tell that the last stage is done."""
    if isinstance(progress, Staged):
        progress.finish()
