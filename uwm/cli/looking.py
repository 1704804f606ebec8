"""Looking without changing anything: eval, calib-check, env."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import BadInput
from ..escaping import lines, terminal
from ..processes import is_first
from .flags import COMMON, GATE, IMAGES, MODEL, NO_CACHE, ZERO_SHOT, print_json, say, split_flags, warn
from .group import uwm
from .next_steps import after_evaluation
from .progress import progress_of
from .reading import CAPTION, GENERATE, SHOWN, reader_of, settings_of, show_reader
from .terminal import gate_lines, show_lines, show_table

if TYPE_CHECKING:
    from ..evaluating import Evaluated


@uwm.command(name="eval")
@click.argument("model", required=False)
@click.option("--pairs", help="Set to measure on: a folder, or a file of ViSU-Text or NSFWCaps.")
@click.option("--split", help="Its split.")
@IMAGES
@click.option("--baseline", help="Model to compare with.")
@ZERO_SHOT
@click.option("--all-figures", is_flag=True, help="Show the tables of all figures; --json always has them.")
@click.option("--by-concept", is_flag=True, help="Show figures by concept too; --json always has them.")
@NO_CACHE
@CAPTION
@GENERATE
@SHOWN
@GATE
@MODEL
@COMMON
def evaluate(
    by_concept: bool,
    annotations: str | None,
    html: Path | None,
    junit: Path | None,
    markdown: Path | None,
    **flags: Any,
) -> None:
    """SafeGround, retrieval and zero-shot accuracy of MODEL; a requirement that is not met sets the exit code.

    With --caption: what a captioner says of images that it reads through MODEL's vision tower. With --generate: what a
    diffusion pipeline draws of prompts that it reads through MODEL's text encoder.
    """
    from ..evaluating import ReportFiles

    settings, show = split_flags(flags)
    files, shown = ReportFiles(html, junit, markdown), (show, by_concept, annotations)
    reader = reader_of(settings)
    if reader == "caption":
        from ..readers.captions import CaptionRecipe, run_captions

        cached = not settings.pop("no_cache")
        recipe = CaptionRecipe(**settings_of(CaptionRecipe, settings, "--caption"), cache=cached)
        show_reader(run_captions, recipe, files, *shown)
    elif reader == "generate":
        from ..readers.generation import GenerateRecipe, run_generation

        drawing = GenerateRecipe(**settings_of(GenerateRecipe, settings, "--generate"))
        show_reader(run_generation, drawing, files, *shown)
    else:
        _evaluate_pairs(settings, files, *shown)


def _evaluate_pairs(
    settings: dict[str, Any], files: Any, show: dict[str, bool], by_concept: bool, annotations: str | None
) -> None:
    """`uwm eval` of an embedding model."""
    from ..evaluating import EvalRecipe, open_reports, run_evaluation
    from ..gate import demand, github_annotations

    for name, said in (("model", "'MODEL'"), ("pairs", "'--pairs'")):
        if settings[name] is None:
            raise click.UsageError(f"Missing {said}, or --caption or --generate for what reads it.")
    all_figures, cached = settings.pop("all_figures"), not settings.pop("no_cache")
    recipe = EvalRecipe(**settings_of(EvalRecipe, settings, "--pairs alone"), cache=cached)
    if not is_first():  # it does its part, and tells nothing
        run_evaluation(recipe)
        return

    def tell(done: Evaluated) -> None:
        warn(show, (*reports.notes, *done.warnings))
        tables = done.sections(all_figures=all_figures, by_concept=by_concept)
        if show["as_json"]:
            print_json(done.as_dict())
        else:
            _show(done, all_figures, by_concept)
        for line in github_annotations(done.verdicts) if annotations == "github" else ():
            click.echo(line, err=True)  # GitHub reads both streams; stdout may hold JSON
        reports.write(done, tables)

    with open_reports(recipe, files) as reports:
        done = run_evaluation(recipe, progress=progress_of(show), tell=tell)
    demand(done.verdicts)


def _show(done: Evaluated, all_figures: bool, by_concept: bool) -> None:
    """The gate, the verdict and what to do next; tables where they are asked for."""
    from ..gate import headline
    from ..report import Line, legend, verdict_lines, verdict_rows

    recipe, gate = done.recipe, headline(done.verdicts)
    against = f" against {recipe.baseline}" if recipe.baseline else ""
    pairs = f"{len(done.pairs)} pairs of {done.pairs.name}" + (f", {recipe.split}" if recipe.split else "")
    facts, failed = done.verdict(), [verdict.requirement for verdict in done.verdicts if not verdict.met]
    told = [
        *gate_lines(gate, verdict_rows(done.verdicts)[1:]),
        Line("DONE", f"{recipe.model} measured{against} on {pairs}"),
    ]
    told += verdict_lines({"verdict": facts})
    show_lines([*told, Line("NEXT", after_evaluation(facts, recipe, failed))])
    if all_figures or by_concept:
        tables = done.tables(all_figures=all_figures, by_concept=by_concept)
        for title, table in tables:
            show_table(title, table)
        click.echo("\n" + legend(all_figures, bool(done.changes)))


@uwm.command(name="calib-check")
@click.argument("set_", metavar="SET")
@click.option("--split", help="Only this split.")
@IMAGES
@click.option(
    "--model", help="List pairs whose sides this model cannot distinguish, and how far an edit depends on them."
)
@click.option("--mass", type=float, default=0.02, show_default=True, help="τ of that edit.")
@MODEL
@COMMON
def calib_check(set_: str, **flags: Any) -> None:
    """Counts by concept and split, and everything inconsistent in a calibration set."""
    from ..inspection import inspect_set

    settings, show = split_flags(flags)
    found, found_lines = inspect_set(set_, **settings, progress=progress_of(show))
    say(show, found, terminal("\n".join(found_lines)))
    if bad := found["warnings"].get("bad_images"):
        raise BadInput(f"{set_}: {len(bad)} bad image{'s' if len(bad) > 1 else ''}; `uwm edit` refuses this set")
    if reason := found.get("refused"):
        raise BadInput(f"{set_}: {reason}")


@uwm.command()
@COMMON
def env(**flags: Any) -> None:
    """Versions and devices, for a bug report."""
    from ..inspection import environment

    _, show = split_flags(flags)
    found = environment()
    say(show, found, lines(f"{key}: {value}" for key, value in found.items()))
