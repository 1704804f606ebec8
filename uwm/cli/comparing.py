"""Several methods against each other: compare."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..escaping import clean, lines
from ..processes import workspace
from .flags import (
    CALIBRATION,
    COMMON,
    HELD_OUT,
    MODEL,
    PATH,
    PRESERVE,
    ZERO_SHOT,
    Numbers,
    say,
    split_flags,
    warn,
)
from .group import uwm
from .progress import progress_of
from .tracking import TRACK, tracked

if TYPE_CHECKING:
    from ..comparison.figures import Row

OUTPUT = "uwm-comparison"


@uwm.command()
@click.argument("model")
@CALIBRATION
@click.option(
    "--methods",
    multiple=True,
    required=True,
    help="With commas, or repeat: uwm, uwm:difference, uwm:mass=0.1, repel:strength=1, repel:control, random, "
    "safe-clip, safe-clip:epochs=5, safe-clip+uwm, or LABEL=CHECKPOINT. A wrong one lists all.",
)
@click.option("--seeds", default="0", type=Numbers(int), show_default=True, help="Run all with each of these.")
@click.option("--masses", default="", type=Numbers(float), help="τ of the curves of edits, such as 0.02,0.05,0.1.")
@click.option("--points", multiple=True, help="Curves over another setting: strength=0.5,1,2; repeat.")
@click.option("--at-epochs", default="", type=Numbers(int), help="Epochs to measure fine-tuning after, as 1,2,4.")
@click.option(
    "--validation", type=float, default=0.1, show_default=True, help="Share of pairs kept for fine-tuning to stop by."
)
@HELD_OUT
@PRESERVE
@click.option("--text-layers", default="out_proj", show_default=True, help="Of edits: slots, globs or names.")
@click.option("--vision-layers", default="fc2", show_default=True, help="Likewise.")
@click.option("--training", multiple=True, help="Of all fine-tuning: epochs=5, lora-alpha=16 and the like; repeat.")
@click.option("--micro-batch", type=click.IntRange(1), help="Fine-tuning: pairs in memory at a time.")
@click.option("--checkpointing", is_flag=True, help="Fine-tuning: compute activations twice rather than keep them.")
@click.option("--train-dtype", default="auto", show_default=True, help="Fine-tuning computes in float32 or bfloat16.")
@ZERO_SHOT
@MODEL
@click.option(
    "-o", "--output", type=PATH, default=OUTPUT, show_default=True, help="Folder to fill; continued if there."
)
@click.option("--overwrite", is_flag=True, help="Make everything in it anew.")
@click.option("--keep-checkpoints", is_flag=True, help="Leave the fine-tuned models in it.")
@click.option("--dry-run", is_flag=True, help="List the runs only.")
@TRACK
@COMMON
def compare(
    output: Path, overwrite: bool, keep_checkpoints: bool, dry_run: bool, track: str | None, **flags: Any
) -> None:
    """Methods against each other: tables, a page with the front of each set, and plots of safety against accuracy."""
    from ..comparison import CompareRecipe, planned
    from ..comparison import compare as carry_out
    from ..comparison.table import terminal

    settings, show = split_flags(flags)
    recipe = CompareRecipe(**settings)
    if dry_run:
        runs = [{"run": name, "done": done} for name, done in planned(recipe, output)]
        say(show, {"runs": runs}, lines(f"{'done' if r['done'] else 'to do'}  {r['run']}" for r in runs))
        return
    with workspace(output, [output]) as place:
        how: dict[str, Any] = {"keep_checkpoints": keep_checkpoints, "progress": progress_of(show)}
        with tracked(track, "compare", recipe, live=False) as followed:
            found = carry_out(recipe, place, overwrite=overwrite, **how)
            followed.ends(_measured(found.tables))
    warn(show, found.warnings)
    say(show, found.as_dict(), f"{terminal(found.tables, found.pairs)}\n\nwritten to {clean(str(output))}")


def _measured(tables: Mapping[str, list[Row]]) -> dict[str, dict[str, Any]]:
    """Set -> every row of its table -> result."""
    return {
        name: {
            row.method if row.at is None else f"{row.method} {row.at[0]} {row.at[1]:g}": {
                "figures": {figure: found.value for figure, found in row.figures.items()}
            }
            for row in table
        }
        for name, table in tables.items()
    }
