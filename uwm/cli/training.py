"""Fine-tuning: `uwm finetune`."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from ..processes import workspace
from .completion import completed
from .flags import (
    ALL_FIGURES,
    CALIBRATION,
    COMMON,
    HELD_OUT,
    MODEL,
    WRITE,
    ZERO_SHOT,
    print_json,
    split_flags,
    target,
    warn,
)
from .group import uwm
from .main_job import show_results
from .next_steps import OUTPUT, done_line, measured_on_more, training_done
from .progress import progress_of
from .terminal import again, show_lines
from .tracking import TRACK, tracked


def _backends() -> Iterable[str]:
    from ..backends import find_backends

    return find_backends()


@uwm.command()
@click.argument("model")
@click.option(
    "--method",
    required=True,
    help="safe-clip, safer-clip, shield-clip, or a backend that you installed.",
    shell_complete=completed(_backends),
)
@CALIBRATION
@HELD_OUT
@click.option("--validation", type=float, default=0.1, show_default=True, help="Share of pairs to stop by.")
@click.option("--epochs", type=int, help="At most this many  [default of this and the next: the method's own]")
@click.option("--train-batch", type=int, help="Pairs a step.")
@click.option("--learning-rate", type=float, help="Of Adam.")
@click.option("--patience", type=int, help="Epochs to wait for a better validation; 0 for no early stop.")
@click.option("--stop-on", type=click.Choice(["loss", "recall"]), help="What is validated.")
@click.option("--rank", type=int, help="Of LoRA.")
@click.option("--lora-alpha", type=float, help="LoRA's α: its part is multiplied by α / rank.")
@click.option("--dropout", type=float, help="Of LoRA's inputs.")
@click.option("--targets", help="Layers to adapt, by name in the Hugging Face layout, comma-separated.")
@click.option("--micro-batch", type=int, help="Pairs at once, for less memory; the loss still sees the whole batch.")
@click.option("--checkpointing", is_flag=True, help="Recompute activations, for less memory.")
@ZERO_SHOT
@MODEL
@WRITE
@ALL_FIGURES
@TRACK
@COMMON
def finetune(
    output: Path | None,
    overwrite: bool,
    dry_run: bool,
    targets: str | None,
    all_figures: bool,
    track: str | None,
    **flags: Any,
) -> None:
    """Train with LoRA by a published method; the output is a checkpoint like any other."""
    from ..finetuning import FinetuneRecipe, state_file
    from ..finetuning import finetune as run
    from ..report import Line, verdict_lines

    settings, show = split_flags(flags)
    output = target(output, dry_run)
    settings["targets"] = tuple(name.strip() for name in (targets or "").split(",") if name.strip())
    recipe = FinetuneRecipe(**settings)
    shared = nullcontext() if output is None else workspace(output, [state_file(output)])
    with shared as place, tracked(track, "finetune", recipe) as followed:
        done = run(recipe, place, overwrite=overwrite, progress=progress_of(show))
        followed.ends(done.manifest["results"], done.manifest.get("verdict"))
    warn(show, done.warnings)
    if show["as_json"]:
        print_json({**done.manifest, "output": None if output is None else str(output)})
        return
    lines = verdict_lines(done.manifest)
    after = measured_on_more(str(output), recipe.model) if output else again(["-o", "OUT"], OUTPUT, ("--dry-run",))
    show_lines(
        [
            done_line(training_done(done.manifest), done.manifest["run"], output),
            *lines,
            Line("NEXT", after),
        ]
    )
    if all_figures:
        show_results(done.results, done.manifest)
