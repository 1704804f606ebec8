"""What the demo captioner says and the demo generator draws, before and after edits and a fine-tuning of the demo CLIP.

    python examples/readers/readers.py readers.json --work WORK    # some 15 minutes on one core; stopped, it goes on
    python examples/readers/readers.py readers.json --table > readers.md

It needs `uwm[generate]` and `uwm[train]`. Every edit learns from the split `calib`. Its tower is put into the
captioner, which describes the images of `test` and `test-concepts`, and into the generator, which draws prompts.jsonl.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import uwm
from uwm.checkpoint import open_checkpoint
from uwm.checkpoint.reach import unread_for
from uwm.editing.purposes import settings_for
from uwm.finetuning import FinetuneRecipe, finetune
from uwm.fitting import Recipe, make_edits
from uwm.models.captioning import Captioner, open_captioner
from uwm.readers.captions import CaptionRecipe, Images, Judge, describe, read_images
from uwm.readers.generation import GenerateRecipe, run_generation
from uwm.readers.results import ReaderResult, differences, summarise
from uwm.shipped_files import DEMO_CAPTIONER, DEMO_GENERATOR, DEMO_SET

PROMPTS = Path(__file__).with_name("prompts.jsonl")
SEEN = DEMO_SET / "zero_shot" / "seen"
SEED = 2  # of the noise; the settings of --for were chosen on the noise of 0 and 1, and on the images of val
TRAINING = {"patience": 0, "train_batch": 64, "learning_rate": 0.001, "lora_alpha": 16, "dropout": 0.0}
EPOCHS = (4, 16)
EDITS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> method and settings beside those of --for
    "UWM": ("uwm", {}),
    "UWM, τ 0.3": ("uwm", {"mass": 0.3}),
    "redirect": ("redirect", {}),
    "redirect, λ 4": ("redirect", {"keep": 4.0}),
    "ablate": ("ablate", {}),
    "random, as redirect": ("redirect", {}),  # its control
}
FIGURES = {
    "captions": ("unsafe_named", "safe_words", "safe_kept"),
    "concepts": ("unsafe_named", "safe_words", "safe_kept"),
    "drawings": ("unsafe_drawn", "prompt_found", "clip_score"),
}
HEADS = {
    "captions": ("unsafe named", "safe words", "safe words kept"),
    "concepts": ("unsafe named", "safe words", "safe words kept"),
    "drawings": ("unsafe drawn", "prompt found", "CLIP score"),
}
TITLES = {
    "captions": "Captions of `test` (400 safe and 400 unsafe images)",
    "concepts": "Captions of `test-concepts` (200 and 200; unsafe concepts that no edit has seen)",
    "drawings": "Images of prompts.jsonl (60 safe and 60 unsafe prompts, two images each)",
}
PURPOSE = {"captions": "llava", "concepts": "llava", "drawings": "diffusion"}


def main() -> None:
    """Add to the results what they lack, or print them as tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--work", type=Path, help="folder of edited models and images")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    known = json.loads(given.results.read_text("utf-8")) if given.results.is_file() else {}
    if given.table:
        print("\n\n".join(tables(known)))
        return
    for reader, name, make in steps(given.work):
        found = known.setdefault(reader, {})
        if name not in found:
            found[name] = MEASURES[reader](make(), given.work)
            given.results.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", "utf-8")
            print(reader, name, {key: round(100 * found[name]["figures"][key][0], 1) for key in FIGURES[reader]})


def steps(work: Path) -> Iterator[tuple[str, str, Callable[[], Path]]]:
    """Reader, name of a method, and what makes the folder of its CLIP."""
    for reader, purpose in PURPOSE.items():
        for name in EDITS:
            yield reader, name, partial(edited, work, name, purpose)
        yield reader, "repel", partial(edited, work, "repel", "retrieval")
        for epochs in EPOCHS:
            yield reader, f"Safe-CLIP, {epochs} epochs", partial(finetuned, work, epochs)


def edited(work: Path, name: str, purpose: str) -> Path:
    """The demo CLIP, edited for a purpose."""
    output = work / f"{purpose}-{name.replace(' ', '-').replace(',', '')}"
    if not output.is_dir():
        method, given = EDITS.get(name, (name, {}))
        recipe = Recipe("demo", str(DEMO_SET), method=method, settings=settings_for(purpose, method, given))
        model = uwm.load("demo")
        assert model.checkpoint is not None
        model.leave_unread(unread_for(purpose, model.checkpoint))
        edit = make_edits(recipe, model, uwm.read_calibration(DEMO_SET, split="calib")).edits[method]
        uwm.apply(model.checkpoint.path, edit.control if name.startswith("random") else edit.patch, output=output)
    return output


def finetuned(work: Path, epochs: int) -> Path:
    """The demo CLIP after some epochs of Safe-CLIP."""
    output = work / f"safe-clip-{epochs}"
    if not output.is_dir():
        settings: dict[str, Any] = {**TRAINING, "epochs": epochs}
        recipe = FinetuneRecipe(
            "demo", str(DEMO_SET), split="calib", eval_splits=("val",), method="safe-clip", **settings
        )
        finetune(recipe, output)
    return output


@cache
def captioner() -> Captioner:
    """The demo captioner, opened once."""
    return open_captioner(str(DEMO_CAPTIONER))


@cache
def described(split: str, folder: Path | None) -> tuple[dict[Path, str], float]:
    """What it says of a split's images through a tower, and seconds a caption."""
    return describe(captioner(), images_of(split).files, None if folder is None else open_checkpoint(folder))


@cache
def images_of(split: str) -> Images:
    return read_images(CaptionRecipe(str(DEMO_CAPTIONER), str(DEMO_SET), split=split))


def captions(folder: Path, work: Path, split: str) -> dict[str, Any]:
    """The figures of the captions of a split, as `uwm eval --caption` has them."""
    images, (before, took) = images_of(split), described(split, None)
    judge, columns = Judge(images.words, None), {"baseline": (before, took), "model": described(split, folder)}
    results = {
        column: summarise(judge.samples(images, said, before), seconds=seconds)
        for column, (said, seconds) in columns.items()
    }
    return facts(results, differences(results["model"], results["baseline"]))


def drawings(folder: Path, work: Path) -> dict[str, Any]:
    """The figures of what the generator draws."""
    outcome = run_generation(
        GenerateRecipe(
            str(DEMO_GENERATOR),
            str(PROMPTS),
            model=str(folder),
            detectors=(f"zero-shot:clip=demo:classes={SEEN}",),
            clip_score="demo",
            steps=15,
            guidance=3.0,
            each=2,
            draw_batch=30,
            seed=SEED,
            output=work / "images",
        )
    )
    return facts(outcome.results, outcome.changes)


MEASURES: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "captions": partial(captions, split="test"),
    "concepts": partial(captions, split="test-concepts"),
    "drawings": drawings,
}


def facts(results: Mapping[str, ReaderResult], changes: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept: figures of both columns, and the differences."""
    return {
        "figures": results["model"].figures,
        "before": results["baseline"].figures,
        "differences": changes,
        "seconds": {column: result.seconds for column, result in results.items()},
    }


def tables(known: Mapping[str, Any]) -> Iterator[str]:
    """A table for each reader, in Markdown."""
    for reader, found in known.items():
        names = FIGURES[reader]
        before = next(iter(found.values()))["before"]
        rows = [
            ["", *(f"{head}{' ↓' if n == 0 else ''}" for n, head in enumerate(HEADS[reader]))],
            ["unedited", *(percent(before[name][0]) for name in names)],
        ]
        for method, facts_of in found.items():
            rows.append([method, *(changed(facts_of, name) for name in names)])
        head, *body = ["| " + " | ".join(row) + " |" for row in rows]
        yield "\n".join([f"{TITLES[reader]}:", "", head, "|---|" + "--:|" * len(names), *body])


def changed(facts_of: Mapping[str, Any], name: str) -> str:
    """A figure in percent, with its change in points and the paired interval of that."""
    mean, low, high = (points(value) for value in facts_of["differences"][name]["difference"])
    return f"{percent(facts_of['figures'][name][0])} ({mean}: {low} to {high})"


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


if __name__ == "__main__":
    main()
