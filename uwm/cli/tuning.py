"""The whole front of safety against loss: tune."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import escaping
from ..processes import workspace
from ..tuning import defaults
from .flags import (
    ALL_FIGURES,
    CALIBRATION,
    COMMON,
    HELD_OUT,
    MODEL,
    OBJECTIVE,
    PATH,
    TUNED,
    ZERO_SHOT,
    print_json,
    split_flags,
    take_settings,
    warn,
)
from .group import uwm
from .main_job import names
from .progress import progress_of
from .terminal import show_lines
from .tracking import TRACK, tracked

if TYPE_CHECKING:
    from ..report import Line
    from ..tuning.front import Front

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
@ALL_FIGURES
@TRACK
@COMMON
def tune(output: Path, overwrite: bool, track: str | None, **flags: Any) -> None:
    """Search the trade-offs of safety against loss of knowledge.

    Writes a table, plots, a page and a patch for each trade-off; `uwm apply MODEL DIR --point knee` takes one. May be
    stopped at any time: the same command goes on.
    """
    from ..tuning.table import terminal
    from ..tuning.tune import TuneRecipe
    from ..tuning.tune import tune as carry_out

    all_figures = flags.pop("all_figures")

    chosen, methods = take_settings(flags), names(flags.pop("methods"))
    settings, show = split_flags(flags)
    recipe = TuneRecipe(**settings, methods=methods, settings=chosen)
    with workspace(output, [output]) as place, tracked(track, "tune", recipe) as followed:
        found = carry_out(recipe, place, overwrite=overwrite, progress=progress_of(show))
        followed.ends(_measured(found.front), _verdict(found.front))
    warn(show, found.warnings)
    if show["as_json"]:
        print_json({**found.front, "output": str(output)})
        return
    show_lines(_lines(found.front, recipe.model, output))
    if all_figures:
        click.echo("\n" + escaping.terminal(terminal(found.front)))


def _lines(front: Front, model: str, output: Path) -> Iterator[Line]:
    """What the search found, the verdict on its knee, and how to take that point."""
    from ..report import Line, verdict_lines
    from ..tuning.points import settings_words

    trials, knee = front["trials"], next(p for p in front["points"] if p["number"] == front["knee"])
    yield Line(
        "DONE",
        f"{trials['done']} trials on {front['calibration']['pairs']} pairs, {trials['per_minute']:.0f} a minute: "
        f"{len(front['points'])} edits on the front; written to {output}",
    )
    words = settings_words(front, knee["method"], knee["settings"])
    yield Line("KNEE", f"point {knee['number']}: {knee['method']} {words}".rstrip())
    if verdict := _verdict(front):
        yield from verdict_lines({"verdict": verdict})
    yield Line("NEXT", shlex.join(["uwm", "apply", model, str(output), "--point", "knee", "-o", "OUT"]))


def _verdict(front: Front) -> Any:
    """What may be claimed of the knee, on the first held-out set; None where that is nothing."""
    from ..report import verdict_facts
    from ..tuning.front import CHECKED

    knee = next(point for point in front["points"] if point["number"] == front["knee"])
    name = next(iter(front["baseline"]["held_out"]), CHECKED)
    before = front["baseline"]["held_out"].get(name, front["baseline"]["cross_validated"])
    there = knee["held_out"].get(name, knee["cross_validated"])
    columns = {"before": before, knee["method"]: there}
    return verdict_facts({name: columns}, {name: {knee["method"]: {"before": there["changes"]}}})


def _measured(front: Front) -> dict[str, dict[str, Any]]:
    """Set -> ``before`` and every point of the front -> result, on held-out pairs."""
    points = {f"point-{point['number']}": point["held_out"] for point in front["points"]}
    columns = {"before": front["baseline"]["held_out"], **points}
    return {name: {column: found[name] for column, found in columns.items()} for name in front["baseline"]["held_out"]}
