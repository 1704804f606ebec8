"""The main job in steps, and what is done with its output: score, select, apply, revert, diff, inspect, push."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import BadInput
from ..escaping import clean, lines
from ..processes import is_first
from .flags import (
    COMMON,
    FILES,
    HUB,
    KEY,
    MODEL,
    NO_CACHE,
    OFFLINE,
    PATH,
    SCORE,
    SCORING,
    SELECT,
    WRITE,
    resolved,
    say,
    split_flags,
    warn,
)
from .group import uwm
from .progress import progress_of

if TYPE_CHECKING:
    from ..calibration import CalibrationSet
    from ..editing.entries.scores import Scores
    from ..models import Model


@uwm.command()
@click.argument("model")
@SCORE
@MODEL
@click.option("-o", "--output", type=PATH, required=True, help="Scores file to write (.safetensors).")
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
@NO_CACHE
@COMMON
def score(output: Path, overwrite: bool, **flags: Any) -> None:
    """Profile and score only; thresholds can then be tried for free."""
    from ..calibration import signal
    from ..editing.entries.scoring import entry_editor
    from ..editing.entries.scoring import score as make
    from ..inputs import Inputs, calibration_pairs, input_paths, keep_work, load_model, work_is_done
    from ..outputs import output_file
    from ..records import is_record

    settings, show = split_flags(flags)
    how = {name: value for name in SCORING if (value := settings.pop(name)) is not None}
    how["method"], cached = entry_editor(settings.pop("method")).name, not settings.pop("no_cache")
    recipe = Inputs(**settings)
    how |= {"batch_size": recipe.batch_size, "workers": recipe.workers, "progress": progress_of(show)}

    def made() -> tuple[CalibrationSet, Model, Scores]:
        pairs, model = calibration_pairs(recipe), load_model(recipe)
        if cached:
            decides = {name: how.get(name) for name in ("method", *SCORING)}
            keep_work("score", settings | decides, model, [pairs], progress=how["progress"])
        return pairs, model, make(model, pairs, **how)

    if not is_first():  # it does its part, and writes nothing
        made()
        return
    with output_file(output, input_paths(recipe), overwrite, partial(is_record, "scores")) as file:
        pairs, model, scores = made()
        towers = {weight.tower.partition("_")[0] for weight in scores}
        warn(show, [*file.notes, *model.notes, *pairs.warnings(), *signal(model, pairs, towers).warnings()])
        file.write(scores.content())
        work_is_done(model.unfinished)
    say(
        show,
        {"output": str(output), "weights": len(scores), **scores.recipe},
        f"{len(scores)} weights → {clean(str(output))}",
    )


@uwm.command()
@click.argument("scores", type=PATH)
@SELECT
@click.option("-o", "--output", type=PATH, required=True, help="Patch file to write (.safetensors).")
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
@COMMON
def select(scores: Path, output: Path, overwrite: bool, **flags: Any) -> None:
    """A patch from stored scores."""
    from ..editing.entries.scores import Scores
    from ..editing.entries.select import select as make
    from ..outputs import output_file
    from ..records import is_record
    from ..report import layer_table
    from ..text_tables import text_table

    settings, show = split_flags(flags)
    with output_file(output, [scores], overwrite, partial(is_record, "patch")) as file:
        patch = make(Scores.load(scores), **settings)
        file.write(patch.content())
    warn(show, file.notes)
    layers = {str(name): asdict(summary) for name, summary in patch.summaries().items()}
    say(show, {"output": str(output), "layers": layers}, f"{text_table(layer_table(layers))}\n→ {clean(str(output))}")


@uwm.command()
@click.argument("model")
@click.argument("patch", type=PATH)
@click.option(
    "--point",
    metavar="knee|N|max-loss=LOSS",
    help="Where PATCH is a folder of `uwm tune`: which point of its front, such as 3, or max-loss=2% for the best "
    "that loses no more.",
)
@FILES
@WRITE
@HUB
@COMMON
def apply(model: str, patch: Path, point: str | None, **flags: Any) -> None:
    """Write an edited copy of a checkpoint from a patch; no model library is needed."""
    from ..tuning.front import is_front, patch_path, read_front
    from ..tuning.points import choose_point, listed
    from ..tuning.table import point_facts, point_line

    if not is_front(patch):
        if point is not None:
            raise BadInput(f"--point {point}: {patch} is no folder that uwm tune wrote; leave --point out for a patch")
        return _file_to_file("apply", model, patch, flags)
    front = read_front(patch)
    if point is None:
        raise BadInput(f"{patch}: holds a front; choose a point with --point, such as --point knee; there are "
                       f"{listed(front)}")  # fmt: skip
    chosen = choose_point(front, point)
    about = (point_facts(front, chosen), point_line(front, chosen))
    return _file_to_file("apply", model, patch_path(patch, chosen), flags, about)


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


def _file_to_file(
    verb: str, model: str, patch_path: Path, flags: dict[str, Any], point: tuple[dict[str, Any], str] | None = None
) -> None:
    """Change a checkpoint by a patch; `point` is what a front says of the patch, for JSON and in a line."""
    from ..editing import files as rewrite
    from ..editing.patch import Patch

    settings, show = split_flags(flags)
    source = resolved(model, settings)
    output, loaded = settings.pop("output"), Patch.load(patch_path)
    if settings.pop("dry_run"):
        checkpoint = rewrite.open_checkpoint(source, settings["key"])
        fitted, left_out = rewrite.fit(checkpoint, loaded, cast=settings["cast"], edited=verb == "revert")
        done, hashes, where, notes = "would change", {}, "", checkpoint.notes
        notes += tuple(rewrite.idle(rewrite.unread(checkpoint), fitted.changes)) if verb == "apply" else ()
    elif output is None:
        raise BadInput("say where to write with -o FOLDER, or pass --dry-run")
    else:
        written = getattr(rewrite, verb)(source, loaded, output=output, **settings)
        fitted, left_out, hashes, notes = written.patch, written.left_out, written.hashes, written.notes
        done, where = "changed", f" → {output}"
    warn(show, notes)
    count = sum(fitted.counts().values())
    missing = f" (left out: {', '.join(left_out)}, which this checkpoint does not have)" if left_out else ""
    text = clean(f"{verb}: {done} {count} entries in {len(fitted.changes)} tensors{missing}{where}")
    about = {"entries": count, "left_out": left_out, "output": None if output is None else str(output)}
    if point is not None:
        about, text = {**about, "point": point[0]}, f"{clean(point[1])}\n{text}"
    say(show, {**about, "sha256": hashes}, text)


@uwm.command()
@click.argument("first")
@click.argument("second")
@KEY
@HUB
@COMMON
def diff(first: str, second: str, key: str | None, **flags: Any) -> None:
    """Which tensors of two checkpoints differ, and in how many entries."""
    from ..editing.diff import diff as compare
    from ..text_tables import clean, text_table

    settings, show = split_flags(flags)
    found = compare(resolved(first, dict(settings)), resolved(second, settings), key)
    table = [
        ["tensor", "differ", "negated", "of"],
        *([clean(n), *(f"{v}" for v in c.values())] for n, c in found.items()),
    ]
    say(show, found, text_table(table) if found else "no tensor differs")


@uwm.command()
@click.argument("file")
@KEY
@HUB
@COMMON
def inspect(file: str, key: str | None, **flags: Any) -> None:
    """What a patch, a scores file, a checkpoint or a folder of `uwm tune` holds."""
    from ..inspection import inspect as look
    from ..text_tables import text_facts, text_table
    from ..tuning.front import is_front, read_front
    from ..tuning.table import terminal

    settings, show = split_flags(flags)
    path = resolved(file, settings)
    if is_front(path):
        front = read_front(path)
        say(show, front, terminal(front))
        return
    about, table = look(path, key)
    weights = text_table(table)
    say(show, {**about, "weights": [dict(zip(table[0], row, strict=True)) for row in table[1:]]},
         f"{text_facts(about)}\n\n{weights}")  # fmt: skip


@uwm.command()
@click.argument("folder", type=PATH)
@click.argument("repository", metavar="ORG/NAME")
@click.option("--private", is_flag=True, help="Make a repository that only you and your organisation see.")
@click.option("--branch", "--revision", "branch", help="Branch to commit to, made if there is none.")
@click.option("--message", help="Of the commit.")
@click.option("--create-pr", is_flag=True, help="Open a pull request with the commit.")
@click.option(
    "--include", multiple=True, metavar="PATTERN", help="Only files that fit, such as '*.safetensors'; repeat."
)
@click.option("--exclude", multiple=True, metavar="PATTERN", help="No files that fit, such as report.html; repeat.")
@click.option("--dry-run", is_flag=True, help="Check, and list what would be uploaded.")
@OFFLINE
@COMMON
def push(folder: Path, repository: str, **flags: Any) -> None:
    """Upload a folder that uwm wrote, with its card, to the Hugging Face Hub."""
    from ..push import push as upload

    settings, show = split_flags(flags)
    done = upload(folder, repository, **settings)
    warn(show, done.warnings)
    listed = lines(f"{size:>14,}  {name}" for name, size in done.files.items())
    text = done.url if done.commit else f"{listed}\nwould be uploaded to {done.url}"
    say(show, {"url": done.url, "commit": done.commit, "files": done.files}, text)
