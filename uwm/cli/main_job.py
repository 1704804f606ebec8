"""The main job: `uwm edit` and `uwm demo`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ..editing.editors import editor_names
from ..editing.purposes import PURPOSES
from ..escaping import terminal
from ..processes import is_first
from .completion import completed
from .flags import (
    ALL_FIGURES,
    CALIBRATION_OR_FROM,
    COMMON,
    EDITOR,
    EXAMPLES,
    EXPORT,
    HELD_OUT,
    LIMIT,
    MODEL,
    NO_CACHE,
    PATH,
    WRITE,
    ZERO_SHOT,
    print_json,
    split_flags,
    take_settings,
    target,
    warn,
)
from .group import uwm
from .next_steps import after_edit, done_line, edit_done
from .progress import progress_of
from .terminal import show_lines, show_table
from .tracking import TRACK, tracked

DEMO_OUTPUT = "uwm-demo"
BESIDE = "repel"


def names(text: str) -> tuple[str, ...]:
    """Names with commas between; ``none`` for none."""
    return tuple(name.strip() for name in text.split(",") if name.strip() not in ("", "none"))


@uwm.command()
@click.argument("model", required=False)
@CALIBRATION_OR_FROM
@click.option(
    "--from",
    "source",
    type=PATH,
    metavar="UWM.JSON",
    help="Repeat the run that this uwm.json records, with its settings and seeds: the same bytes, or an error.",
)
@LIMIT
@EDITOR
@HELD_OUT
@click.option(
    "--for",
    "purpose",
    type=click.Choice(PURPOSES),
    help="What will read the edited towers: it decides which of them, at which layer and tokens, and without --method "
    "the method.",
)
@click.option("--again", is_flag=True, help="Edit a checkpoint that uwm has edited already.")
@click.option(
    "--require-towers",
    type=click.Choice(["both", "text", "vision"]),
    help="Fail, and write nothing, unless these towers were edited; for CI.",
)
@click.option(
    "--beside",
    shell_complete=completed(editor_names),
    help=f"Methods measured beside the edit; none for none  [default: {BESIDE}; with --for diffusion or llava none]",
)
@ZERO_SHOT
@MODEL
@WRITE
@EXAMPLES
@ALL_FIGURES
@EXPORT
@NO_CACHE
@TRACK
@COMMON
def edit(
    output: Path | None,
    overwrite: bool,
    dry_run: bool,
    show_examples: bool,
    all_figures: bool,
    track: str | None,
    source: Path | None,
    **flags: Any,
) -> None:
    """Edit a model, measure it, write it: the main job.

    With --max-loss the method and its settings are chosen for you. With --from nothing but places is needed, and what
    decides the edit cannot be given.
    """
    from ..recipe import Recipe

    if source is not None:
        _repeat(source, flags, target(output, dry_run), overwrite, show_examples, all_figures, track)
        return
    for name, said in (("model", "argument 'MODEL'"), ("calib", "option '--calib'")):
        if flags[name] is None:
            raise click.UsageError(f"Missing {said}.", click.get_current_context())
    chosen, beside = take_settings(flags), flags.pop("beside")
    if beside is None:
        beside = BESIDE if flags["purpose"] in (None, "retrieval") else ""
    settings, show = split_flags(flags)
    output = target(output, dry_run)
    recipe = Recipe(**_cached(settings), settings=chosen, beside=names(beside))
    _run("edit", recipe, output, overwrite, show_examples, all_figures, show, track)


def _cached(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with what --no-cache says as the recipe has it."""
    rest = {name: value for name, value in settings.items() if name != "no_cache"}
    return {**rest, "cache": False} if settings.get("no_cache") else rest


def _repeat(
    source: Path,
    flags: dict[str, Any],
    output: Path | None,
    overwrite: bool,
    show_examples: bool,
    all_figures: bool,
    track: str | None,
) -> None:
    """`uwm edit --from`: what was given by hand goes before what is recorded, or is refused."""
    from ..repeating import repeat

    context = click.get_current_context()
    settings, show = split_flags(flags)
    given = {name: v for name, v in settings.items() if context.get_parameter_source(name) != ParameterSource.DEFAULT}
    recipe, recorded = repeat(source, _cached(given))
    _run("edit", recipe, output, overwrite, show_examples, all_figures, show, track, recorded)


@uwm.command()
@LIMIT
@EDITOR
@click.option(
    "--beside",
    default=BESIDE,
    show_default=True,
    help="Methods measured beside the edit; none for none.",
    shell_complete=completed(editor_names),
)
@click.option("-o", "--output", type=PATH, default=DEMO_OUTPUT, show_default=True, help="Folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
@click.option("--dry-run", is_flag=True, help="Do everything but write.")
@EXAMPLES
@ALL_FIGURES
@EXPORT
@NO_CACHE
@TRACK
@COMMON
def demo(
    output: Path,
    overwrite: bool,
    dry_run: bool,
    show_examples: bool,
    all_figures: bool,
    track: str | None,
    **flags: Any,
) -> None:
    """The main job on the shipped model and set, offline, in under two minutes."""
    from ..recipe import demo_recipe

    chosen, beside = take_settings(flags), names(flags.pop("beside"))
    settings, show = split_flags(flags)
    recipe = demo_recipe(**_cached(settings), settings=chosen, beside=beside)
    _run("demo", recipe, target(output, dry_run), overwrite, show_examples, all_figures, show, track)


def _run(
    verb: str,
    recipe: Any,
    output: Path | None,
    overwrite: bool,
    show_examples: bool,
    all_figures: bool,
    show: dict[str, bool],
    track: str | None,
    recorded: Any = None,
) -> None:
    from ..recipe import NOTHING, run
    from ..report import Line, verdict_lines

    place = output if is_first() else None
    how: dict[str, Any] = {"overwrite": overwrite, "show_examples": show_examples, "progress": progress_of(show)}
    with tracked(track, verb, recipe) as followed:
        outcome = run(recipe, place, **how, recorded=recorded or NOTHING)
        followed.ends(outcome.manifest["results"], outcome.manifest.get("verdict"))
    if not is_first():
        return
    warn(show, outcome.warnings)
    manifest = outcome.manifest
    if show["as_json"]:
        print_json({**manifest, "output": None if output is None else str(output)})
        return
    lines = verdict_lines(manifest)
    half = [line for line in lines if line.label == "WARNING"]
    done = done_line(edit_done(manifest), manifest["run"], output)
    show_lines([*half, done, *lines[len(half) :], Line("NEXT", after_edit(manifest, recipe.model, output))])
    if all_figures:
        show_results(outcome.results, manifest)


def show_results(results: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    """A table for every evaluation set with all figures, and what the names mean."""
    from ..report import ALL_LEGEND, LEGEND, RANDOM_LEGEND, budget_lines, heading, rows

    for line in budget_lines(manifest.get("budget")):
        click.echo(f"\n{terminal(line)}")
    for name, columns in results.items():
        show_table(heading(name, next(iter(columns.values())).pairs), rows(columns, all_figures=True))
    if results:
        click.echo(f"\n{LEGEND} {ALL_LEGEND}" + (f" {RANDOM_LEGEND}" if "edit" in manifest else ""))
