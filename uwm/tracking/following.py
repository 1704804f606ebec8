"""Telling a tracker of the run in progress. A tracker that fails later on is left out; the work goes on."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from ..errors import ResourceFault, UwmError
from .outcomes import Results, figures_of, texts_of
from .trackers import Recording, Run, Tracker

logger = logging.getLogger(__name__)


@dataclass
class Followed:
    """A run in progress.

    Attributes:
        figures, texts: What it ends with; whoever carries out the run fills them.
    """

    recording: Recording | None
    name: str
    figures: dict[str, float] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    def ends(self, results: Results, verdict: Mapping[str, Any] | None = None) -> None:
        """Keep the final figures by set, column and name, and the verdict; `finish` tells them."""
        self.figures |= figures_of(results)
        self.texts |= texts_of(verdict)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Tell the tracker, as long as it works."""
        if self.recording is None:
            return
        try:
            self.recording.log(step, _finite(figures))
        except Exception as error:  # of a foreign library
            self._give_up(error)

    def finish(self, failed: bool) -> None:
        """Likewise, for the last time."""
        if self.recording is None:
            return
        try:
            self.recording.finish(_finite(self.figures), self.texts, failed)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self.recording = None
        logger.warning("--track %s: no longer told of this run (%s: %s)", self.name, type(error).__name__, error)


_NOBODY = Followed(None, "")
_CURRENT: ContextVar[Followed] = ContextVar("followed", default=_NOBODY)


@contextmanager
def following(tracker: Tracker, run: Run, live: bool = True) -> Iterator[Followed]:
    """Tell a tracker of the run that the body carries out, and how it ended.

    Args:
        tracker: Whose library was checked.
        run: Its name and settings.
        live: Whether `note` in the body goes to it; false where the body has several runs in one another.

    Raises:
        ResourceFault: The tracker cannot begin.
    """
    try:
        followed = Followed(tracker.start(run), tracker.name)
    except UwmError:
        raise
    except Exception as error:  # of a foreign library
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ResourceFault(
            f"--track {tracker.name}: cannot begin a run ({reason}); leave it out, or repair it"
        ) from error
    token = _CURRENT.set(followed if live else _NOBODY)
    failed = True
    try:
        yield followed
        failed = False
    finally:
        _CURRENT.reset(token)
        followed.finish(failed)


def note(step: int, figures: Mapping[str, float]) -> None:
    """Figures of the run in progress, by name, at a step; nothing where no tracker follows it."""
    _CURRENT.get().log(step, figures)


def _finite(figures: Mapping[str, float]) -> dict[str, float]:
    """Without what is no number: trackers store those as texts, or refuse them."""
    return {name: float(value) for name, value in figures.items() if math.isfinite(value)}
