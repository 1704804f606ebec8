"""The whole front of safety against loss: tune."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..processes import workspace
from ..tuning import defaults
from .flags import (
    CALIBRATION,
    COMMON,
    HELD_OUT,
    MODEL,
    OBJECTIVE,
    PATH,
    TUNED,
    ZERO_SHOT,
    progress_of,
    say,
    split_flags,
    take_settings,
    warn,
)
from .group import uwm
from .main_job import names

OUTPUT = "uwm-tune"


@uwm.command()
@click.argument("model")
@CALIBRATION
@click.option(
    "--methods",
    default="",
    metavar="NAME,NAME,…",
    help=f"Editors to try  [default: {', '.join(defaults.METHODS)}]",
)
@OBJECTIVE
@click.option(
    "--trials",
    type=click.IntRange(1),
    default=defaults.FRONT_TRIALS,
    show_default=True,
    help="Edits to try, those of earlier runs in the folder included; more continue the search.",
)
@TUNED
@HELD_OUT
@ZERO_SHOT
@MODEL
@click.option(
    "-o",
    "--output",
    type=PATH,
    default=OUTPUT,
    show_default=True,
    help="Folder to fill; a search that is there goes on.",
)
@click.option("--overwrite", is_flag=True, help="Begin a search that is there anew.")
@COMMON
def tune(output: Path, overwrite: bool, **flags: Any) -> None:
    """Search the trade-offs of safety against loss of knowledge.

    Writes a table, plots, a page and a patch for each trade-off; `uwm apply MODEL DIR --point knee` takes one. May be
    stopped at any time: the same command goes on.
    """
    from ..tuning.table import terminal
    from ..tuning.tune import TuneRecipe
    from ..tuning.tune import tune as carry_out

    chosen, methods = take_settings(flags), names(flags.pop("methods"))
    settings, show = split_flags(flags)
    recipe = TuneRecipe(**settings, methods=methods, settings=chosen)
    with workspace(output, [output]) as place:
        found = carry_out(recipe, place, overwrite=overwrite, progress=progress_of(show))
    warn(show, found.warnings)
    after = f"uwm apply {recipe.model} {output} --point knee -o OUT"
    say(show, {**found.front, "output": str(output)}, f"{terminal(found.front)}\n\nwritten to {output}; next: {after}")
