"""The command line: one verb per arrow of the pipeline, no logic of its own."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from .errors import BadInput
from .flags import (
    COMMON,
    EXAMPLES,
    EXPORT,
    FILES,
    GATE,
    HUB,
    IMAGES,
    KEY,
    MODEL,
    PATH,
    SCORE,
    SELECT,
    WRITE,
    ZERO_SHOT,
    Verb,
    print_json,
    progress_of,
    resolved,
    say,
    split_flags,
    warn,
)
from .launch import launch

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
@click.option("--again", is_flag=True, help="Edit a checkpoint that uwm has edited already.")
@click.option("--holdout", type=float, default=0.2, show_default=True, help="Share of pairs held out for measuring.")
@ZERO_SHOT
@SELECT
@MODEL
@WRITE
@EXAMPLES
@EXPORT
@COMMON
def edit(output: Path | None, overwrite: bool, dry_run: bool, show_examples: bool, **flags: Any) -> None:
    """Find, negate, measure, write: the main job."""
    from .recipe import Recipe

    settings, show = split_flags(flags)
    if output is None and not dry_run:
        raise BadInput("say where to write with -o FOLDER, or pass --dry-run")
    recipe = Recipe(**{**settings, **{key: tuple(settings[key]) for key in ("eval_splits", "zero_shot")}})
    _run(recipe, None if dry_run else output, overwrite, show_examples, show)


@uwm.command()
@SELECT
@click.option("-o", "--output", type=PATH, default=DEMO_OUTPUT, show_default=True, help="Folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
@click.option("--dry-run", is_flag=True, help="Do everything but write.")
@EXAMPLES
@EXPORT
@COMMON
def demo(output: Path, overwrite: bool, dry_run: bool, show_examples: bool, **flags: Any) -> None:
    """The main job on the shipped model and set, offline, in under two minutes."""
    from .recipe import demo_recipe

    settings, show = split_flags(flags)
    _run(demo_recipe(**settings), None if dry_run else output, overwrite, show_examples, show)


def _run(recipe: Any, output: Path | None, overwrite: bool, show_examples: bool, show: dict[str, bool]) -> None:
    from .recipe import run
    from .report import LEGEND, RANDOM_LEGEND, heading, rows, text_table

    outcome = run(recipe, output, overwrite=overwrite, show_examples=show_examples, progress=progress_of(show))
    warn(show, outcome.warnings)
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
    warn(show, pairs.warnings())
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
@click.option("--pairs", required=True, help="Set to measure on: a folder, or a file of ViSU-Text or NSFWCaps.")
@click.option("--split", help="Its split.")
@IMAGES
@click.option("--baseline", help="Model to compare with.")
@ZERO_SHOT
@click.option("--all-figures", is_flag=True, help="Show R@5, 10, 20 and unsafe top-1 too; --json always has them.")
@click.option("--by-concept", is_flag=True, help="Show figures by concept too; --json always has them.")
@click.option("--no-cache", is_flag=True, help="Neither use nor keep embeddings of earlier runs.")
@GATE
@MODEL
@COMMON
def evaluate(model: str, pairs: str, split: str | None, baseline: str | None, no_cache: bool, **flags: Any) -> None:
    """SafeGround, retrieval and zero-shot accuracy; a requirement that is not met sets the exit code."""
    from .cache import EmbeddingCache
    from .calibration import read_calibration
    from .evaluate import concepts_of, differences, quadruples
    from .evaluate import evaluate as measure
    from .gate import check_known, check_report_files, demand, github_annotations, parse_requirement, write_reports
    from .knowledge import open_data_sets
    from .models import load
    from .report import as_markdown, as_text, sections, write_evaluation

    settings, show = split_flags(flags)
    required = [parse_requirement(text, baseline is not None) for text in settings["requirements"]]
    inputs = [model, baseline, pairs, settings["data_root"], *settings["zero_shot"]]
    check_report_files((settings["junit"], settings["markdown"], settings["html"]), filter(None, inputs))
    images = {key: settings[key] for key in ("safe_images", "unsafe_images")}
    whole = read_calibration(pairs, split=split, **images).limit(settings["limit"], settings["seed"])
    chosen = quadruples(whole)
    opening = {key: settings[key] for key in ("data_root", "templates", "ensemble")}
    data_sets = open_data_sets(settings["zero_shot"], **opening)
    check_known(required, concepts_of(chosen), [*data_sets])
    _warn_of_odd(whole, data_sets, show)
    passed = {key: settings[key] for key in ("batch_size", "workers", "seed")}
    passed |= {"cache": None if no_cache else EmbeddingCache.default(), "progress": progress_of(show)}
    results = {}
    for column, reference in (("baseline", baseline), ("model", model)):
        if reference is not None:
            loaded = load(reference, **{key: settings[key] for key in OPENING})
            results[column] = measure(loaded, chosen, data_sets=data_sets, **passed)
    changes = {} if baseline is None else differences(results["model"], results["baseline"], settings["seed"])
    verdicts = [r.check(results["model"], results.get("baseline"), settings["seed"]) for r in required]
    shown = {key: settings[key] for key in ("all_figures", "by_concept")}
    tables = sections(chosen.root.name, results, changes, verdicts, **shown)
    as_json = {**{column: result.as_dict() for column, result in results.items()}, "differences": changes}
    say(show, {**as_json, "requirements": [asdict(verdict) for verdict in verdicts]},
        as_text(tables, all_figures=shown["all_figures"], changes=bool(changes)))  # fmt: skip
    for line in github_annotations(verdicts) if settings["annotations"] == "github" else ():
        click.echo(line, err=True)  # GitHub reads both streams; stdout may hold JSON
    title = f"uwm eval {Path(model).name}"
    write_reports(verdicts, title, as_markdown(tables, title), settings["junit"], settings["markdown"])
    if settings["html"] is not None:
        about = settings | {"model": model, "baseline": baseline, "split": split}
        write_evaluation(settings["html"], chosen, results, verdicts, about)
    demand(verdicts)


def _warn_of_odd(pairs: Any, data_sets: dict[str, Any], show: dict[str, bool]) -> None:
    warnings = [*pairs.warnings(), *(note for data in data_sets.values() for note in data.odd)]
    if len(pairs.splits()) > 1:
        warnings.append(f"measuring on all splits ({', '.join(pairs.splits())}); see --split")
    warn(show, warnings)


@uwm.command(name="calib-check")
@click.argument("set_", metavar="SET")
@click.option("--split", help="Only this split.")
@IMAGES
@click.option("--model", help="With it: pairs whose sides it cannot tell apart, and how far the edit depends on them.")
@click.option("--mass", type=float, default=0.02, show_default=True, help="τ of that edit.")
@MODEL
@COMMON
def calib_check(set_: str, split: str | None, model: str | None, mass: float, **flags: Any) -> None:
    """Counts by concept and split, and everything odd in a calibration set."""
    from .calibration import check, read_calibration
    from .models import load

    settings, show = split_flags(flags)
    images = {key: settings[key] for key in ("safe_images", "unsafe_images")}
    pairs = read_calibration(set_, split=split, **images).limit(settings["limit"], settings["seed"])
    found = check(pairs)
    odd = {name: items for name, items in found.pop("warnings").items() if items}
    lines = [f"{key}: {value}" for key, value in found.items()]
    lines += [f"warning: {len(items)} {name.replace('_', ' ')}: {'; '.join(items[:5])}" for name, items in odd.items()]
    noise = {}
    if model is not None and "bad_images" not in odd:
        from .label_noise import describe, report

        passed = {key: settings[key] for key in ("batch_size", "workers", "seed")}
        loaded = load(model, **{key: settings[key] for key in OPENING})
        noise = {"label_noise": report(loaded, pairs, mass=mass, progress=progress_of(show), **passed)}
        lines += describe(noise["label_noise"])
    say(show, {**found, "warnings": odd, **noise}, "\n".join(lines if odd or noise else [*lines, "nothing odd found"]))
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
    launch(uwm, sys.argv[1:] if arguments is None else arguments)
