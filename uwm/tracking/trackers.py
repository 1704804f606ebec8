"""What an experiment tracker is, and which are installed (entry points ``uwm.trackers``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from .. import plugins
from ..errors import BadInput

GROUP = "uwm.trackers"
PROJECT = "uwm"


@dataclass(frozen=True)
class Run:
    """What a tracker is told of a run before the work.

    Attributes:
        name: The verb and the model's name, ``edit demo``.
        settings: By name, as in uwm.json: JSON values, without paths of this machine.
    """

    name: str
    settings: Mapping[str, Any]


class Recording(Protocol):
    """One run at a tracker."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures by name at a step, which never falls."""

    def finish(self, figures: Mapping[str, float], texts: Mapping[str, str], failed: bool) -> None:
        """End it: the final figures by name, texts such as the verdict, and whether the work failed."""


class Tracker(Protocol):
    """Takes runs. A distribution of your own registers one by an entry point in ``uwm.trackers``."""

    @property
    def name(self) -> str:
        """As in ``--track``; the entry point's name is the same."""

    def check(self) -> None:
        """Refuse before the work. Raises BadInput where the library is missing, with what installs it."""

    def start(self, run: Run) -> Recording:
        """Begin a run; what the library raises is told as an error of uwm."""


def find_tracker(name: str) -> Tracker:
    """A tracker by its name. Raises BadInput."""
    there = _installed()
    if name not in there:
        raise BadInput(f"--track {name!r}: expected one of {', '.join(there)}")
    return there[name]


def tracker_names() -> Iterable[str]:
    """Those that are installed, sorted."""
    return tuple(_installed())


def _installed() -> plugins.Installed:
    return plugins.Installed(GROUP, "tracker", _lack)


def _lack(found: Any) -> str | None:
    """What an object lacks of a tracker."""
    lacking = [name for name in ("name", "check", "start") if not hasattr(found, name)]
    return f"is no tracker, it has no {lacking[0]!r}" if lacking else None
