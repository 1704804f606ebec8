"""The main job: `uwm edit` and `uwm demo`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ..editing.purposes import PURPOSES
from ..processes import is_first
from .flags import (
    CALIBRATION,
    COMMON,
    EDITOR,
    EXAMPLES,
    EXPORT,
    HELD_OUT,
    LIMIT,
    MODEL,
    PATH,
    WRITE,
    ZERO_SHOT,
    print_json,
    progress_of,
    split_flags,
    take_settings,
    target,
    warn,
)
from .group import uwm

DEMO_OUTPUT = "uwm-demo"
BESIDE = "repel"


def names(text: str) -> tuple[str, ...]:
    """Names with commas between; ``none`` for none."""
    return tuple(name.strip() for name in text.split(",") if name.strip() not in ("", "none"))


@uwm.command()
@click.argument("model")
@CALIBRATION
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
    "--beside",
    help=f"Methods measured beside the edit; none for none  [default: {BESIDE}; with --for diffusion or llava none]",
)
@ZERO_SHOT
@MODEL
@WRITE
@EXAMPLES
@EXPORT
@COMMON
def edit(output: Path | None, overwrite: bool, dry_run: bool, show_examples: bool, **flags: Any) -> None:
    """Edit a model, measure it, write it: the main job.

    With --max-loss the method and its settings are chosen for you.
    """
    from ..recipe import Recipe

    chosen, beside = take_settings(flags), flags.pop("beside")
    if beside is None:
        beside = BESIDE if flags["purpose"] in (None, "retrieval") else ""
    settings, show = split_flags(flags)
    output = target(output, dry_run)
    _run(Recipe(**settings, settings=chosen, beside=names(beside)), output, overwrite, show_examples, show)


@uwm.command()
@LIMIT
@EDITOR
@click.option("--beside", default=BESIDE, show_default=True, help="Methods measured beside the edit; none for none.")
@click.option("-o", "--output", type=PATH, default=DEMO_OUTPUT, show_default=True, help="Folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
@click.option("--dry-run", is_flag=True, help="Do everything but write.")
@EXAMPLES
@EXPORT
@COMMON
def demo(output: Path, overwrite: bool, dry_run: bool, show_examples: bool, **flags: Any) -> None:
    """The main job on the shipped model and set, offline, in under two minutes."""
    from ..recipe import demo_recipe

    chosen, beside = take_settings(flags), names(flags.pop("beside"))
    settings, show = split_flags(flags)
    recipe = demo_recipe(**settings, settings=chosen, beside=beside)
    _run(recipe, target(output, dry_run), overwrite, show_examples, show)


def _run(recipe: Any, output: Path | None, overwrite: bool, show_examples: bool, show: dict[str, bool]) -> None:
    from ..recipe import run
    from ..report import LEGEND, RANDOM_LEGEND, edit_words, verdict_lines

    place = output if is_first() else None
    outcome = run(recipe, place, overwrite=overwrite, show_examples=show_examples, progress=progress_of(show))
    if not is_first():
        return
    warn(show, outcome.warnings)
    manifest = outcome.manifest
    if show["as_json"]:
        print_json({**manifest, "output": None if output is None else str(output)})
        return
    pairs = ", ".join(f"{count} for {tower}" for tower, count in manifest["calibration"]["pairs"].items())
    click.echo(
        f"{manifest['model']['name']}: {manifest['edit']['title']}, from {manifest['calibration']['name']} pairs "
        f"({pairs}): {edit_words(manifest)}"
    )
    for line in verdict_lines(manifest, timed=True):
        click.echo(line)
    show_results(outcome.results, manifest["run"], output, f"{LEGEND} {RANDOM_LEGEND}")


def show_results(results: Mapping[str, Any], used: Mapping[str, Any], output: Path | None, legend: str) -> None:
    """A table for every evaluation set, and what the run took."""
    from ..report import heading, rows
    from ..text_tables import text_table

    for name, columns in results.items():
        click.echo(f"\n{heading(name, next(iter(columns.values())).pairs)}\n{text_table(rows(columns))}")
    if results:
        click.echo(f"\n{legend}")
    seconds, memory = sum(used["seconds"].values()), used["peak_memory_mb"]
    click.echo(
        f"\n{seconds:.0f} s, peak memory {memory} MB; " + (f"written to {output}" if output else "nothing written")
    )
