"""`--track`: a run told to an experiment tracker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..processes import is_first
from ..tracking import Run, find_tracker, following, tracker_names
from ..tracking.following import Followed
from .completion import completed

if TYPE_CHECKING:
    from ..inputs import Inputs

TRACK = click.option(
    "--track",
    metavar="NAME",
    help="Tell an experiment tracker of the run: trackio, wandb or tensorboard.",
    shell_complete=completed(tracker_names),
)


@contextmanager
def tracked(name: str | None, verb: str, recipe: Inputs, live: bool = True) -> Iterator[Followed]:
    """Tell a tracker of what the body carries out; of several processes the first one does.

    Args:
        name: Of the tracker; None for none.
        verb, recipe: What is run.
        live: As in `uwm.tracking.following`.

    Raises:
        UwmError: There is no such tracker, its library is missing, it cannot begin; before any work.
    """
    if name is None:
        yield Followed(None, "")
        return
    tracker = find_tracker(name)
    tracker.check()
    if not is_first():
        yield Followed(None, name)
        return
    settings = public(recipe)
    with following(tracker, Run(f"{verb} {settings['model']}", settings), live) as followed:
        yield followed


def public(recipe: Inputs) -> dict[str, Any]:
    """The settings as JSON, without the paths of this machine. Raises UwmError."""
    from ..inputs import public_settings
    from ..models.references import resolve
    from ..records import to_json

    settings = public_settings(recipe, resolve(recipe.model, **recipe.hub()))
    if isinstance(methods := settings.get("methods"), list | tuple):
        settings["methods"] = [_named(part) for text in methods for part in str(text).split(",")]
    return json.loads(to_json(settings))


def _named(method: str) -> str:
    """A method of a comparison; of ``LABEL=CHECKPOINT`` the label and the checkpoint's last part."""
    label, given, rest = method.partition("=")
    return f"{label}={Path(rest).name}" if given and ":" not in label else method
