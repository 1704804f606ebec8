"""The command line: one verb per arrow of the pipeline, no logic of its own."""

from __future__ import annotations

import sys

from . import comparing, looking, main_job, steps, training, trying, tuning  # noqa: F401
from .group import uwm
from .launch import launch

__all__ = ["main", "uwm"]


def main(arguments: list[str] | None = None) -> None:
    """The `uwm` program: run a verb and leave with its exit code."""
    launch(uwm, sys.argv[1:] if arguments is None else arguments)
