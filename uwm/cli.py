"""The command line: one verb per arrow of the pipeline, no logic of its own."""

from __future__ import annotations

import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import click

from .errors import BadInput, RequirementNotMet, ResourceFault, UwmError
from .flags import (
    COMMON,
    FILES,
    HUB,
    KEY,
    MODEL,
    PATH,
    SCORE,
    SELECT,
    WRITE,
    Verb,
    print_json,
    progress_of,
    resolved,
    say,
    split_flags,
)

DEMO_OUTPUT = "uwm-demo"
OPENING = ("arch", "quick_gelu", "key", "device", "dtype", "revision", "cache_dir", "offline")  # keywords of uwm.load


class _Group(click.Group):
    """Verbs in the order in which they are written, under the names their functions have."""

    command_class = Verb

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="uwm")
def uwm() -> None:
    """Make CLIP-like vision-language models safer by editing their weights, without training."""


# ---------------------------------------------------------------- the main job


@uwm.command()
@click.argument("model")
@SCORE
@click.option("--eval", "eval_set", help="Set to measure on  [default: pairs held out of --calib]")
@click.option("--eval-split", "eval_splits", multiple=True, help="Its split, or one of --calib's; repeat for more.")
@click.option("--holdout", type=float, default=0.2, show_default=True, help="Share of pairs held out for measuring.")
@click.option("--zero-shot", multiple=True, help="Folder of classes for zero-shot accuracy; repeat for more.")
@SELECT
@MODEL
@WRITE
@COMMON
def edit(output: Path | None, overwrite: bool, dry_run: bool, **flags: Any) -> None:
    """Find, negate, measure, write: the main job."""
    from .recipe import Recipe

    settings, show = split_flags(flags)
    if output is None and not dry_run:
        raise BadInput("say where to write with -o FOLDER, or pass --dry-run")
    recipe = Recipe(**{**settings, **{key: tuple(settings[key]) for key in ("eval_splits", "zero_shot")}})
    _run(recipe, None if dry_run else output, overwrite, show)


@uwm.command()
@SELECT
@click.option("-o", "--output", type=PATH, default=DEMO_OUTPUT, show_default=True, help="Folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
@click.option("--dry-run", is_flag=True, help="Do everything but write.")
@COMMON
def demo(output: Path, overwrite: bool, dry_run: bool, **flags: Any) -> None:
    """The main job on the shipped model and set, offline, in under two minutes."""
    from .recipe import demo_recipe

    settings, show = split_flags(flags)
    _run(demo_recipe(**settings), None if dry_run else output, overwrite, show)


def _run(recipe: Any, output: Path | None, overwrite: bool, show: dict[str, bool]) -> None:
    from .recipe import run
    from .report import LEGEND, RANDOM_LEGEND, heading, rows, text_table

    outcome = run(recipe, output, overwrite=overwrite, progress=progress_of(show))
    for warning in () if show["quiet"] else outcome.warnings:
        click.echo(f"uwm: warning: {warning}", err=True)
    manifest = outcome.manifest
    if show["as_json"]:
        print_json({**manifest, "output": None if output is None else str(output)})
        return
    pairs = ", ".join(f"{count} for {tower}" for tower, count in manifest["calibration"]["pairs"].items())
    click.echo(
        f"{manifest['model']['name']}: scored on {manifest['calibration']['name']} pairs ({pairs}); negated "
        f"{manifest['selected']} of {manifest['of']} entries in {len(manifest['layers'])} matrices"
        if outcome.patch.alpha == -1
        else f"{manifest['model']['name']}: {manifest['selected']} of {manifest['of']} entries × {outcome.patch.alpha}"
    )
    for name, columns in outcome.results.items():
        click.echo(f"\n{heading(name, next(iter(columns.values())).pairs)}\n{text_table(rows(columns))}")
    if outcome.results:
        click.echo(f"\n{LEGEND} {RANDOM_LEGEND}")
    used = manifest["run"]
    seconds, memory = sum(used["seconds"].values()), used["peak_memory_mb"]
    click.echo(
        f"\n{seconds:.0f} s, peak memory {memory} MB; " + (f"written to {output}" if output else "nothing written")
    )


# ---------------------------------------------------------------- its steps


@uwm.command()
@click.argument("model")
@SCORE
@MODEL
@click.option("-o", "--output", type=PATH, required=True, help="Scores file to write (.safetensors).")
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
@COMMON
def score(output: Path, overwrite: bool, **flags: Any) -> None:
    """Profile and score only; thresholds can then be tried for free."""
    from .recipe import Recipe, calibration_pairs, load_model, make_scores

    settings, show = split_flags(flags)
    recipe = Recipe(**settings)
    _refuse_existing(output, overwrite, recipe.model, recipe.calib)
    pairs = calibration_pairs(recipe)
    scores = make_scores(recipe, load_model(recipe), pairs, progress_of(show))
    scores.save(output)
    say(show, {"output": str(output), "weights": len(scores), **scores.recipe}, f"{len(scores)} weights → {output}")


@uwm.command()
@click.argument("scores", type=PATH)
@SELECT
@click.option("-o", "--output", type=PATH, required=True, help="Patch file to write (.safetensors).")
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
@COMMON
def select(scores: Path, output: Path, overwrite: bool, **flags: Any) -> None:
    """A patch from stored scores."""
    from .patch import select as make
    from .report import layer_table, text_table
    from .scoring import Scores

    settings, show = split_flags(flags)
    _refuse_existing(output, overwrite, str(scores))
    loaded = Scores.load(scores)
    patch = make(loaded, **settings)
    patch.save(output)
    layers = {str(w): {"selected": n, "of": loaded[w].numel()} for w, n in patch.counts().items()}
    say(show, {"output": str(output), "layers": layers}, f"{text_table(layer_table(layers))}\n→ {output}")


@uwm.command()
@click.argument("model")
@click.argument("patch", type=PATH)
@FILES
@WRITE
@HUB
@COMMON
def apply(model: str, patch: Path, **flags: Any) -> None:
    """Write an edited copy of a checkpoint from a patch; no model library is needed."""
    _file_to_file("apply", model, patch, flags)


@uwm.command()
@click.argument("model")
@click.argument("patch", type=PATH)
@FILES
@WRITE
@HUB
@COMMON
def revert(model: str, patch: Path, **flags: Any) -> None:
    """Undo a patch; the tensors are the original's again, byte for byte."""
    _file_to_file("revert", model, patch, flags)


def _file_to_file(verb: str, model: str, patch_path: Path, flags: dict[str, Any]) -> None:
    from . import rewrite
    from .patch import Patch

    settings, show = split_flags(flags)
    source = resolved(model, settings)
    output, loaded = settings.pop("output"), Patch.load(patch_path)
    if settings.pop("dry_run"):
        checkpoint = rewrite.open_checkpoint(source, settings["key"])
        fitted, left_out = rewrite.fit(checkpoint, loaded, cast=settings["cast"], edited=verb == "revert")
        done, hashes, where = "would change", {}, ""
    elif output is None:
        raise BadInput("say where to write with -o FOLDER, or pass --dry-run")
    else:
        written = getattr(rewrite, verb)(source, loaded, output=output, **settings)
        fitted, left_out, hashes = written.patch, written.left_out, written.hashes
        done, where = "changed", f" → {output}"
    count = sum(fitted.counts().values())
    missing = f" (left out: {', '.join(left_out)}, which this checkpoint does not have)" if left_out else ""
    text = f"{verb}: {done} {count} entries in {len(fitted.flips)} matrices{missing}{where}"
    about = {"entries": count, "left_out": left_out, "output": None if output is None else str(output)}
    say(show, {**about, "sha256": hashes}, text)


@uwm.command()
@click.argument("first")
@click.argument("second")
@KEY
@HUB
@COMMON
def diff(first: str, second: str, key: str | None, **flags: Any) -> None:
    """Which tensors of two checkpoints differ, and in how many entries."""
    from .report import text_table
    from .rewrite import diff as compare

    settings, show = split_flags(flags)
    found = compare(resolved(first, dict(settings)), resolved(second, settings), key)
    table = [["tensor", "differ", "negated", "of"], *([n, *(f"{v}" for v in c.values())] for n, c in found.items())]
    say(show, found, text_table(table) if found else "no tensor differs")


@uwm.command()
@click.argument("file")
@KEY
@HUB
@COMMON
def inspect(file: str, key: str | None, **flags: Any) -> None:
    """What a patch, a scores file or a checkpoint holds."""
    from .inspection import inspect as look
    from .report import text_table

    settings, show = split_flags(flags)
    about, table = look(resolved(file, settings), key)
    head = "\n".join(f"{key}: {value}" for key, value in about.items())
    say(show, {**about, "weights": [dict(zip(table[0], row, strict=True)) for row in table[1:]]},
         f"{head}\n{text_table(table)}")  # fmt: skip


# ---------------------------------------------------------------- looking


@uwm.command(name="eval")
@click.argument("model")
@click.option("--pairs", required=True, help="Set to measure on, a folder.")
@click.option("--split", help="Its split.")
@click.option("--baseline", help="Model to compare with.")
@click.option("--zero-shot", multiple=True, help="Folder of classes for zero-shot accuracy; repeat for more.")
@click.option("--require", "requirements", multiple=True, help="Such as 'GS>=4.5', or 'top1>=-2%' of the baseline's.")
@MODEL
@COMMON
def evaluate(
    model: str, pairs: str, split: str | None, baseline: str | None, requirements: tuple, **flags: Any
) -> None:
    """SafeGround, retrieval and zero-shot accuracy; a requirement that is not met sets the exit code."""
    from .calibration import read_calibration
    from .evaluate import evaluate as measure
    from .evaluate import parse_requirement, zero_shot_folders
    from .models import load
    from .report import LEGEND, heading, rows, text_table

    settings, show = split_flags(flags)
    parsed = [parse_requirement(text, baseline is not None) for text in requirements]
    chosen = read_calibration(pairs, split=split).limit(settings["limit"], settings["seed"])
    results = {}
    for column, reference in (("baseline", baseline), ("model", model)):
        if reference is not None:
            loaded = load(reference, **{key: settings[key] for key in OPENING})
            folders = zero_shot_folders(settings["zero_shot"])
            passed = {key: settings[key] for key in ("batch_size", "workers", "seed")}
            results[column] = measure(loaded, chosen, zero_shot_folders=folders, progress=progress_of(show), **passed)
    verdicts = [requirement.check(results["model"], results.get("baseline")) for requirement in parsed]
    if len(chosen.splits()) > 1 and not show["quiet"]:
        click.echo(f"uwm: warning: measuring on all splits ({', '.join(chosen.splits())}); see --split", err=True)
    text = f"{heading(chosen.root.name, len(chosen))}\n{text_table(rows(results))}\n\n{LEGEND}"
    say(show, {**{c: r.as_dict() for c, r in results.items()}, "requirements": verdicts}, text)
    _demand(verdicts)


def _demand(verdicts: list[dict[str, Any]]) -> None:
    failed = [f"{v['requirement']} (found {v['found']:.1f} %)" for v in verdicts if not v["met"]]
    if failed:
        raise RequirementNotMet(f"requirement not met: {', '.join(failed)}")


@uwm.command(name="calib-check")
@click.argument("set_", metavar="SET")
@click.option("--split", help="Only this split.")
@COMMON
def calib_check(set_: str, split: str | None, **flags: Any) -> None:
    """Counts by concept and split, and everything odd in a calibration set."""
    from .calibration import check, read_calibration

    _, show = split_flags(flags)
    found = check(read_calibration(set_, split=split))
    odd = {name: items for name, items in found.pop("warnings").items() if items}
    lines = [f"{key}: {value}" for key, value in found.items()]
    lines += [f"warning: {len(items)} {name.replace('_', ' ')}: {'; '.join(items[:5])}" for name, items in odd.items()]
    say(show, {**found, "warnings": odd}, "\n".join(lines if odd else [*lines, "nothing odd found"]))
    if bad := odd.get("bad_images"):
        raise BadInput(f"{set_}: {len(bad)} bad pictures; `uwm edit` refuses this set")


@uwm.command()
@COMMON
def env(**flags: Any) -> None:
    """Versions and devices, for a bug report."""
    from .inspection import environment

    _, show = split_flags(flags)
    found = environment()
    say(show, found, "\n".join(f"{key}: {value}" for key, value in found.items()))


# ---------------------------------------------------------------- shared by the verbs


def _refuse_existing(path: Path, overwrite: bool, *inputs: str) -> None:
    if any(Path(source).resolve() == path.resolve() for source in inputs):
        raise BadInput(f"{path}: is the input itself; choose another output")
    if path.exists() and not overwrite:
        raise BadInput(f"{path}: exists; pass --overwrite to replace it, or choose another output")


def main(arguments: list[str] | None = None) -> None:
    """The `uwm` program: run a verb and leave with its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _stop)
    sys.exit(_exit_code(arguments))


def _stop(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


def _exit_code(arguments: list[str]) -> int:
    try:
        uwm.main(arguments, prog_name="uwm", standalone_mode=False)
    except UwmError as error:
        return _fail(error, arguments)
    except click.exceptions.Abort:
        click.echo("uwm: interrupted; nothing was left half-written", err=True)
        return 130
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" Try '{context.command_path} --help' for help." if context is not None else ""
        click.echo(f"uwm: error: {error.format_message()}{hint}", err=True)
        return error.exit_code
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "out of memory" not in str(error):
            raise
        return _fail(ResourceFault("out of memory; try a smaller --batch-size, or --device cpu"), arguments)
    except OSError as error:
        return _fail(ResourceFault(f"{error.filename or 'the system'}: {error.strerror or error}"), arguments)
    return 0


def _fail(error: UwmError, arguments: list[str]) -> int:
    if "--debug" in arguments:
        traceback.print_exception(error)
    click.echo(f"uwm: error: {error}", err=True)
    return error.exit_code
