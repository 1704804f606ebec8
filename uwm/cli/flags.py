"""The flags that the verbs share, where they come from (command line, UWM_<FLAG>, TOML), and how results are shown."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import click

from ..editing import settings
from ..editing.editors import DEFAULT, editor_names, find_editors
from ..editing.entries.editor import EntrySettings
from ..errors import BadInput
from ..escaping import CleanLines, clean, json_text, terminal
from ..processes import is_first
from ..schema import LARGEST
from ..tuning import defaults
from .completion import completed
from .config_file import check_values, read_toml, unknown_variables, variables
from .progress import begin


class Verb(click.Command):
    """A command whose flags take underscores too, come from UWM_<FLAG> and from a TOML file as well."""

    def invoke(self, context: click.Context) -> Any:
        """Run it, after saying which UWM_ variables are none."""
        group = context.find_root().command
        if isinstance(group, click.Group) and not context.params.get("quiet") and is_first():
            for line in unknown_variables(os.environ, variables(group)):
                click.echo(f"uwm: warning: {clean(line)}", err=True)
        begin(context)
        return super().invoke(context)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", {})["token_normalize_func"] = lambda token: token.replace("_", "-")
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(["--config"], type=click.Path(path_type=Path), is_eager=True, expose_value=False,
                         callback=_read_config, help="TOML file with any of these flags.")
        )  # fmt: skip
        for option in self.params:
            if isinstance(option, click.Option) and option.name:
                option.envvar = f"UWM_{_flag(option).upper().replace('-', '_')}"
                option.show_envvar = False


def _flag(option: click.Option) -> str:
    """The option's long flag without its dashes, ``eval-split``."""
    return max(option.opts, key=len).lstrip("-")


def _read_config(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Make the file's keys the defaults; a key that is no flag of the command is an error."""
    if path is None:
        return
    given = read_toml(path)
    options = {_flag(p): p for p in context.command.params if isinstance(p, click.Option) and p.name != "config"}
    names = {flag: option.name for flag, option in options.items()}
    given = {key.replace("_", "-"): value for key, value in given.items()}
    if unknown := sorted(given.keys() - names.keys()):
        raise BadInput(f"--config {path}: unknown key {unknown[0]!r}; expected some of {', '.join(sorted(names))}")
    taking = {flag for flag, option in options.items() if _takes_several(option)}
    check_values(path, given, options, taking)
    context.default_map = {names[key]: value for key, value in given.items()}


def _takes_several(option: click.Option) -> bool:
    return option.multiple or isinstance(option.type, _Text | Numbers)


class _Auto(click.ParamType):
    """``auto`` or a positive whole number."""

    name = "auto|N"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> int:
        from ..statistics.batches import BATCH_SIZE

        if value == "auto":
            return BATCH_SIZE
        text = str(value)
        if text.isdecimal() and len(text) < 10 and int(text) > 0:
            return int(text)
        self.fail(f"{value!r} is neither auto nor a positive number", param, context)


def _processors() -> int:
    """This process's share of the processors that it may use, at most 16; torchrun says among how many."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(1, found // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))), 16)


def stack(*options: Callable) -> Callable:
    def wrap(function: Callable) -> Callable:
        for option in reversed(options):
            function = option(function)
        return function

    return wrap


class _Text(click.ParamType):
    """A text; a TOML file may have a list, which is the text with commas between, or true and false."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


class Numbers(click.ParamType):
    """Numbers with commas between, ``0,1,2``; in a TOML file a list of them too."""

    name = "N,N,…"

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple:
        texts = value if isinstance(value, list | tuple) else [part for part in str(value).split(",") if part.strip()]
        try:
            return tuple(self.kind(text) for text in texts)
        except (TypeError, ValueError):
            self.fail(f"{value!r}: expected numbers with commas between", param, context)


def _tell_libraries(variable: str) -> Callable:
    """A callback that sets an environment variable before any library is imported, which is when they read it."""

    def tell(context: click.Context, option: click.Parameter, given: bool) -> bool:
        if given:
            os.environ[variable] = "1"
        return given

    return tell


PATH = click.Path(path_type=Path)
NO_BARS = _tell_libraries("HF_HUB_DISABLE_PROGRESS_BARS")
COMMON = stack(
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    click.option("-q", "--quiet", is_flag=True, callback=NO_BARS, help="No progress, no warnings."),
    click.option("-v", "--verbose", is_flag=True, help="Log what is done to stderr."),
    click.option("--no-progress", is_flag=True, callback=NO_BARS, help="No progress bars."),
    click.option("--debug", is_flag=True, help="Show the traceback of an error."),
)
OFFLINE = click.option(
    "--offline", is_flag=True, callback=_tell_libraries("HF_HUB_OFFLINE"), help="Never touch the network."
)
KEY = click.option("--key", help="Which entry of a training checkpoint holds the weights.")
HUB = stack(
    click.option("--revision", help="Branch, tag or commit of a model on the Hub."),
    click.option("--cache-dir", help="The Hub's cache  [default: huggingface_hub's own]"),
    OFFLINE,
)
MODEL = stack(
    HUB,
    click.option("--arch", help="open_clip's architecture name, for bare weights."),
    click.option(
        "--preprocess",
        metavar="TAG|FILE",
        help="How images are prepared, for bare weights: open_clip's tag, or a JSON of its preprocess_cfg.",
    ),
    click.option("--quick-gelu/--no-quick-gelu", default=None, help="The activation, for bare weights."),
    KEY,
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda[:N] or mps."),
    click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16 or float16."),
    click.option("--batch-size", type=_Auto(), default="auto", show_default=True, help="Pairs at a time."),
    click.option(
        "--workers",
        type=click.IntRange(1, 1024),
        default=_processors,
        show_default="one a processor, at most 16",
        help="Threads that read and prepare images; for a GPU as many processes.",
    ),
    click.option("--seed", type=click.IntRange(0, LARGEST), default=0, show_default=True, help="For every draw."),
    click.option("--limit", type=click.IntRange(1), help="At most this many pairs."),
)
IMAGES = stack(
    click.option("--safe-images", help="Folder of the safe images of ViSU-Text (COCO's) or NSFWCaps."),
    click.option("--unsafe-images", help="Folder of their unsafe images."),
)


def _calibration(required: bool) -> Callable:
    told = "Calibration set: a folder, or a file of ViSU-Text or NSFWCaps."
    split = click.option("--split", help="Its split to calibrate on  [default: calib or train, where there is one]")
    return stack(click.option("--calib", required=required, help=told), IMAGES, split)


CALIBRATION, CALIBRATION_OR_FROM = _calibration(True), _calibration(False)
_METHODS = f"The editor: {', '.join(editor_names())}."
_OFFERED = completed(editor_names)
METHOD = click.option("--method", default=DEFAULT, show_default=True, help=_METHODS, shell_complete=_OFFERED)
SET = click.option(
    "--set", "set_", multiple=True, metavar="NAME=VALUE", help="Any setting of the method, of plug-ins too; repeat."
)
PRESERVE = click.option(
    "--preserve", help="Safe captions or images without partners that the edit shall leave alone: a folder or a text."
)


def _setting_flags(kinds: Mapping[str, type], names: Iterable[str] | None = None) -> Callable:
    """A flag for every setting of these editors, by their names; what is not given the editor decides."""
    owners: dict[str, list[str]] = {}
    declared: dict[str, Field] = {}
    for editor, kind in kinds.items():
        for f in fields(kind):
            if names is None or f.name in names:
                declared.setdefault(f.name, f)
                owners.setdefault(f.name, []).append(editor)
    common = max(map(len, owners.values()), default=0)
    return stack(
        *(_setting_flag(f, owners[name] if len(owners[name]) < common else []) for name, f in declared.items())
    )


def _setting_flag(declared: Field, owners: Sequence[str]) -> Callable:
    kind, choices = declared.metadata["kind"], declared.metadata["choices"]
    of = f"Of {', '.join(owners)}: " if owners else ""
    words = f" {', '.join(choices)}." if choices else ""
    return click.option(
        f"--{settings.flag(declared.name)}",
        declared.name,
        type=_Text() if kind in (str, bool) else kind,
        help=f"{of}{declared.metadata['help']}{words}",
        shell_complete=completed(lambda: choices) if choices else None,
    )


def _ours() -> dict[str, type]:
    return {name: editor.Settings for name, editor in find_editors(only="uwm").items()}


SCORING, CHOOSING = ("variant", "text_layers", "vision_layers"), ("mass", "text_mass", "vision_mass", "alpha", "rule")
SCORE = stack(CALIBRATION, METHOD, _setting_flags({DEFAULT: EntrySettings}, SCORING))
SELECT = _setting_flags({DEFAULT: EntrySettings}, CHOOSING)
TUNED = stack(_setting_flags(_ours()), SET, PRESERVE)
EDITOR = stack(
    click.option(
        "--method", help=f"{_METHODS}  [default: {DEFAULT}; with --max-loss the best]", shell_complete=_OFFERED
    ),
    TUNED,
)
BEST = "figure to make best: safety (the mean of PU and of 1 − unsafe top-1), or another one, such as GS.low or PU."
OBJECTIVE = click.option(
    "--objective", default=defaults.OBJECTIVE, show_default=True, metavar="FIGURE", help=f"{BEST[:1].upper()}{BEST[1:]}"
)
LIMIT = stack(
    click.option(
        "--max-loss",
        metavar="LOSS",
        help="The most that may be lost of zero-shot accuracy, safe R@1 and --preserve, such as 2% or "
        "zero_shot=1pt,R1=2%. Method and settings are then chosen on folds of the calibration pairs; a method or a "
        "setting that is given narrows the search.",
    ),
    click.option(
        "--until-stable",
        type=float,
        metavar="SHARE",
        help="Use only so many pairs that the edit from half of them agrees so well with that from all, such as 0.98.",
    ),
    click.option(
        "--objective",
        default=defaults.OBJECTIVE,
        show_default=True,
        metavar="FIGURE",
        help=f"With --max-loss the {BEST}",
    ),
    click.option(
        "--trials",
        type=click.IntRange(1),
        default=defaults.TRIALS,
        show_default=True,
        help="With --max-loss: edits to try.",
    ),
)
EDITOR_SETTINGS = tuple(dict.fromkeys(f.name for kind in _ours().values() for f in fields(kind)))
SETTING_FLAGS = tuple(f"--{settings.flag(name)}" for name in EDITOR_SETTINGS)
ALL_FIGURES = click.option("--all-figures", is_flag=True, help="Show tables of all figures; files always have them.")


def take_settings(flags: dict[str, Any]) -> dict[str, Any]:
    """Take the flags of EDITOR that are the editor's settings out of the flags; those of --set come with them."""
    given = {name: value for name in EDITOR_SETTINGS if (value := flags.pop(name, None)) is not None}
    try:
        return {**given, **settings.spelt(flags.pop("set_", ()), [])}
    except BadInput as error:
        raise BadInput(f"--set {error}") from None


ZERO_SHOT = stack(
    click.option(
        "--zero-shot",
        multiple=True,
        help="Data set by name (imagenet, cifar10 …, or all) or folder of classes; repeat.",
    ),
    click.option("--data-root", help="Folder in which the named data sets lie; nothing is downloaded."),
    click.option("--templates", help="File of zero-shot prompts, such as 'a photo of a {}.', for the sets' own."),
    click.option("--ensemble", is_flag=True, help="Use all prompts of a file, not its first line only."),
)
HELD_OUT = stack(
    click.option("--eval", "eval_set", help="Set to measure on  [default: pairs held out of --calib]"),
    click.option("--eval-split", "eval_splits", multiple=True, help="Its split, or one of --calib's; repeat for more."),
    click.option("--holdout", type=float, default=0.2, show_default=True, help="Share of pairs kept for measuring."),
    click.option("--strict", is_flag=True, help="Refuse sets that are otherwise only warned of."),
)
GATE = stack(
    click.option(
        "--require",
        "requirements",
        multiple=True,
        help="Such as 'GS>=4.5' (percent), 'top1>=-2%' or 'R1_ts_vs>=-2pt' (change), 'P_vu@weapons>=10', 'GS.low>=3'.",
    ),
    click.option(
        "--allow-calibration-pairs",
        is_flag=True,
        help="With --require: pass on pairs that calibrated the model, too; without it the gate fails.",
    ),
    click.option("--html", type=PATH, help="Write everything as one page with charts."),
    click.option("--junit", type=PATH, help="Write the verdicts as JUnit XML."),
    click.option("--markdown", type=PATH, help="Append tables and verdicts to a Markdown file."),
    click.option("--annotations", type=click.Choice(["github"]), help="Print failed requirements as CI annotations."),
)
FILES = stack(
    click.option("--cast", is_flag=True, help="Accept the base stored in another of float32, float16, bfloat16."),
    KEY,
)
EXPORT = click.option(
    "--also-export",
    type=click.Choice(["hf", "open_clip"]),
    metavar="hf|open_clip",
    help="Write a CLIP in the other layout too, in OUT/<name>.",
)
WRITE = stack(
    click.option("-o", "--output", type=PATH, help="Folder to write."),
    click.option("--overwrite", is_flag=True, help="Replace an output that exists."),
    click.option("--dry-run", is_flag=True, help="Do everything but write."),
)
NO_CACHE = click.option(
    "--no-cache",
    is_flag=True,
    help="Keep no work in the user's cache, and use none that an earlier run kept: one that was stopped begins anew.",
)
EXAMPLES = click.option("--show-examples", is_flag=True, help="Show captions and images of the set in report.html.")


def split_flags(flags: dict[str, Any]) -> tuple[dict[str, Any], dict[str, bool]]:
    """The settings, and apart from them how to show things."""
    show = {key: flags.pop(key) for key in ("as_json", "quiet", "verbose", "no_progress", "debug")}
    if show["verbose"]:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(CleanLines("%(name)s: %(message)s"))
        logging.basicConfig(level=logging.INFO, handlers=[handler])
    return flags, show


def resolved(model: str, settings: dict[str, Any]) -> Path:
    """The path behind MODEL; takes the flags of HUB out of the settings."""
    from ..models.references import resolve

    return resolve(model, **{key: settings.pop(key) for key in ("revision", "cache_dir", "offline")})


def target(output: Path | None, dry_run: bool) -> Path | None:
    """The folder to write; None for a dry run. Raises BadInput when there is neither."""
    if output is None and not dry_run:
        raise BadInput("say where to write with -o FOLDER, or pass --dry-run")
    return None if dry_run else output


def say(show: dict[str, bool], as_json: Any, text: str) -> None:
    if show["as_json"]:
        print_json(as_json)
    else:
        click.echo(terminal(text))


def warn(show: dict[str, bool], lines: Iterable[str]) -> None:
    for line in () if show["quiet"] else lines:
        click.echo(f"uwm: warning: {clean(line)}", err=True)


def print_json(value: Any) -> None:
    from ..records import to_json

    click.echo(json_text(to_json(value)))
