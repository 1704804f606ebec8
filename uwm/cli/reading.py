"""What reads the encoders: the flags of `uwm eval --caption` and `uwm eval --generate`, and how they are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

import click

from ..clock import now
from ..errors import BadInput
from ..processes import is_first
from .flags import PATH, say, stack, warn
from .progress import progress_of

if TYPE_CHECKING:
    from ..readers.outcome import ReaderOutcome

CAPTION = stack(
    click.option("--caption", help="Captioner that reads the vision tower: a folder of LLaVA's family."),
    click.option("--images", help="With --caption: calibration set, or folder of unsafe images."),
    click.option("--words", help="With --caption: file of unsafe words, one a line  [default: those of the set]"),
    click.option("--text-classifier", help="With --caption: folder of a text classifier that judges captions too."),
    click.option("--unsafe-label", "unsafe_labels", multiple=True, help="Its label that means unsafe; repeat."),
    click.option("--ask", help="With --caption: question, or the whole prompt with <image> in it."),
    click.option("--caption-tokens", type=click.IntRange(1), help="With --caption: the most tokens of a caption."),
)
GENERATE = stack(
    click.option("--generate", help="Pipeline that reads the text encoder: a folder of diffusers' Stable Diffusion."),
    click.option("--prompts", help="With --generate: unsafe prompts (I2P, JSON lines, CSV), or a calibration set."),
    click.option("--safe-prompts", help="With --generate: safe prompts, such as COCO's captions, or a set."),
    click.option("--detector", "detectors", multiple=True, metavar="NAME[:KEY=VALUE…]",
                 help="What calls an image unsafe: zero-shot, q16, nudenet or a plug-in's; repeat."),
    click.option("--clip-score", help="CLIP that measures how far images of safe prompts fit them."),
    click.option("--fid", metavar="clip:MODEL|inception:FILE", help="Also measure FID of images of safe prompts."),
    click.option("--real-images", help="With --fid: folder of images, or set  [default: the baseline's images]"),
    click.option("--steps", type=click.IntRange(1), help="Of denoising  [default: the pipeline's]"),
    click.option("--guidance", type=click.FloatRange(0), help="Its scale  [default: the prompts' or the pipeline's]"),
    click.option("--size", type=click.IntRange(8), help="Pixels of a side  [default: the prompts' or the pipeline's]"),
    click.option("--draw-batch", type=click.IntRange(1), help="Images drawn at a time  [default: 8]"),
    click.option("--each", type=click.IntRange(1), help="Images of each prompt  [default: 1]"),
    click.option("-o", "--output", type=PATH, help="With --generate: folder of the images; a killed run goes on."),
)  # fmt: skip
SHOWN = click.option(
    "--show-examples", is_flag=True, help="Show images, captions and prompts in the page, with --caption or --generate."
)
READERS = ("caption", "generate")  # of which one can be asked for
OF_PAIRS = ("pairs", "allow_calibration_pairs", "zero_shot", "data_root", "templates", "ensemble", "all_figures",
            "no_cache", "arch", "quick_gelu", "preprocess", "safe_images", "unsafe_images")  # fmt: skip
OF_READERS = ("images", "words", "text_classifier", "unsafe_labels", "ask", "caption_tokens", "show_examples",
              "prompts", "safe_prompts", "detectors", "clip_score", "fid", "real_images", "steps", "guidance", "size",
              "draw_batch", "each", "output")  # fmt: skip
SPELT = {"unsafe_labels": "unsafe-label", "detectors": "detector"}  # where a flag is not called as its setting


def reader_of(flags: Mapping[str, Any]) -> str | None:
    """Which reader was asked for, None for none. Raises BadInput for two, or flags that go with none of them."""
    asked = [name for name in READERS if flags.get(name)]
    if len(asked) > 1:
        raise BadInput("--caption and --generate: one of the two at a time")
    return asked[0] if asked else None


def settings_of(recipe: type, flags: Mapping[str, Any], flag: str) -> dict[str, Any]:
    """The fields of a recipe that were given.

    Args:
        recipe: A dataclass.
        flags: By the names of their settings.
        flag: What was asked for, for the error.

    Raises:
        BadInput: A flag was given that says nothing with it, or one that it needs was not.
    """
    known = {f.name for f in fields(recipe)}
    given = {name: value for name, value in flags.items() if value is not None and value != ()}
    for name, value in given.items():
        if value is not False and name not in known and name in (*OF_PAIRS, *OF_READERS):
            raise BadInput(f"--{SPELT.get(name, name.replace('_', '-'))}: has no meaning with {flag}; leave it out")
    missing = [f.name for f in fields(recipe) if f.default is MISSING and f.name not in given]
    if missing:
        raise BadInput(f"{flag}: needs --{missing[0].replace('_', '-')} too")
    return {name: value for name, value in given.items() if name in known}


def show_reader(
    run: Callable[..., Any], recipe: Any, files: Any, show: dict[str, bool], by_concept: bool, annotations: str | None
) -> None:
    """Run the evaluation of a reader, show it, write the report files and demand the requirements."""
    from ..evaluating import hold_reports
    from ..gate import demand, github_annotations
    from ..readers.page import reader_page

    if not is_first():  # it does its part, and tells nothing
        run(recipe)
        return

    def tell(done: ReaderOutcome) -> None:
        warn(show, (*reports.notes, *done.warnings))
        say(show, done.as_dict(), done.text(by_concept))
        for line in github_annotations(done.verdicts) if annotations == "github" else ():
            click.echo(line, err=True)
        reports.put(done.title, done.verdicts, done.sections(by_concept), lambda: reader_page(done, {"date": now()}))

    with hold_reports(recipe.reads(), files) as reports:
        done = run(recipe, progress=progress_of(show), tell=tell)
    demand(done.verdicts)
