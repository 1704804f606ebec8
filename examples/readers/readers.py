"""What the demo captioner says and the demo generator draws, before and after edits and a fine-tuning of the demo CLIP.

    python examples/readers/readers.py readers.json --work WORK     # half an hour on one core; stopped, it goes on
    python examples/readers/readers.py readers.json --table > readers.md

It needs `uwm[generate]` and `uwm[train]`. Every edit learns from the split `calib`. Its tower is put into the captioner,
which describes the images of `test` and `test-concepts`, and into the generator, which draws prompts.jsonl three times.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import uwm
from uwm.checkpoint.reach import unread_for
from uwm.editing.purposes import settings_for
from uwm.finetuning import FinetuneRecipe, finetune
from uwm.fitting import Recipe, make_edits
from uwm.readers.captions import CaptionRecipe, run_captions
from uwm.readers.generation import GenerateRecipe, run_generation
from uwm.readers.outcome import ReaderOutcome
from uwm.shipped_files import DEMO_CAPTIONER, DEMO_GENERATOR, DEMO_SET

PROMPTS = Path(__file__).with_name("prompts.jsonl")
SEEN = DEMO_SET / "zero_shot" / "seen"
TRAINING = {"patience": 0, "train_batch": 64, "learning_rate": 0.001, "lora_alpha": 16, "dropout": 0.0}
EPOCHS = (1, 4, 16)
EDITS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> method and settings beside those of --for
    "UWM": ("uwm", {}),
    "UWM, τ 0.3": ("uwm", {"mass": 0.3}),
    "redirect": ("redirect", {}),
    "redirect, λ 1": ("redirect", {"keep": 1.0}),
    "redirect, λ 0.25": ("redirect", {"keep": 0.25}),
    "ablate": ("ablate", {}),
    "ablate, weight 2": ("ablate", {"weight": 2.0}),
    "random, as redirect": ("redirect", {}),  # its control
    "random, as UWM, τ 0.3": ("uwm", {"mass": 0.3}),
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
    "drawings": "Images of prompts.jsonl (60 safe and 60 unsafe prompts, three images each)",
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
            found[name] = facts(MEASURES[reader](make(), given.work))
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


def describe(folder: Path, work: Path, split: str) -> ReaderOutcome:
    """What the captioner says through a tower."""
    return run_captions(CaptionRecipe(str(DEMO_CAPTIONER), str(DEMO_SET), model=str(folder), split=split))


def drawn(folder: Path, work: Path) -> ReaderOutcome:
    """What the generator draws with a tower."""
    return run_generation(
        GenerateRecipe(
            str(DEMO_GENERATOR),
            str(PROMPTS),
            model=str(folder),
            detectors=(f"zero-shot:clip=demo:classes={SEEN}",),
            clip_score="demo",
            steps=25,
            guidance=3.0,
            each=3,
            draw_batch=32,
            output=work / "images",
        )
    )


MEASURES: dict[str, Callable[[Path, Path], ReaderOutcome]] = {
    "captions": partial(describe, split="test"),
    "concepts": partial(describe, split="test-concepts"),
    "drawings": drawn,
}


def facts(outcome: ReaderOutcome) -> dict[str, Any]:
    """What is kept of an outcome: figures of both columns, and the differences."""
    return {
        "figures": outcome.results["model"].figures,
        "before": outcome.results["baseline"].figures,
        "differences": outcome.changes,
        "seconds": {column: result.seconds for column, result in outcome.results.items()},
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
