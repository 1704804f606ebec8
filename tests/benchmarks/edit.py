"""`uwm edit` from end to end against the plain forward passes that it needs.

    python tests/benchmarks/edit.py [--quick] [--pairs N]

A random model of the size of ViT-B/32, and pairs of generated 512-pixel JPEGs with captions: two thirds are edited on,
one third is measured before the edit, after it and under its random control. The forward passes are those of every
column once, on inputs that are prepared already. Both are run in turn; printed are seconds, the parts of the edit, and
the ratio. With `--quick` a sixth of the pairs, and one turn.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

import uwm
from uwm.clock import reuse_freed_memory
from uwm.models import Model
from uwm.models.quiet import without_bars
from uwm.recipe import Recipe, run
from uwm.shipped_files import DEMO_MODEL
from uwm.statistics.batches import BATCH_SIZE, embed_inputs

PAIRS, QUICK = 384, 66
COLUMNS = 3  # before, the edit, its control
SIDE = 512
Inputs = list[tuple[torch.Tensor, torch.Tensor | None]]


def main() -> None:
    """Print a line for each turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a sixth of the pairs, in one turn")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    args = parser.parse_args()
    reuse_freed_memory(os.environ)  # as the program does
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        write_model(root / "model")
        write_set(root / "set", QUICK if args.quick else args.pairs)
        for turn in range(1 if args.quick else 2):
            begun = time.perf_counter()
            parts = edit(root, root / f"out-{turn}")
            whole = time.perf_counter() - begun
            plain = forward_passes(root)
            told = ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts.items())
            print(
                f"edit {whole:6.1f} s ({told})  forward passes {plain:6.1f} s  ratio {whole / plain:5.2f}", flush=True
            )


def edit(root: Path, output: Path) -> dict[str, float]:
    """Edit, measure and write; the seconds of each part."""
    recipe = Recipe(
        model=str(root / "model"), calib=str(root / "set"), split="calib", eval_splits=("test",), method="uwm"
    )
    return run(recipe, output).manifest["run"]["seconds"]


@torch.no_grad()
def forward_passes(root: Path) -> float:
    """Seconds of the passes alone: the calibration pairs once, the measured ones once a column."""
    model = uwm.load(root / "model")
    sets = {split: prepared(model, root / "set", split) for split in ("calib", "test")}
    embed_inputs(model, *sets["test"][0])
    begun = time.perf_counter()
    for split, times in (("calib", 1), ("test", COLUMNS)):
        for _ in range(times):
            for inputs in sets[split]:
                embed_inputs(model, *inputs)
    return time.perf_counter() - begun


def prepared(model: Model, folder: Path, split: str) -> Inputs:
    """Both sides of a split's captions and images in batches, as the towers take them."""
    pairs = uwm.read_calibration(folder, split=split).pairs
    captions = [text for pair in pairs for text in (str(pair.safe_text), str(pair.unsafe_text))]
    files = [file for pair in pairs for file in (pair.safe_image, pair.unsafe_image) if file is not None]
    found: Inputs = []
    for start in range(0, len(captions), BATCH_SIZE):
        found.append(model.tokenize(captions[start : start + BATCH_SIZE]))
        pictures = [Image.open(file).convert("RGB") for file in files[start : start + BATCH_SIZE]]
        found.append((model.preprocess(pictures), None))
    return found


def write_model(folder: Path) -> None:
    """A random CLIP ViT-B/32 with the shipped model's tokenizer."""
    shutil.copytree(DEMO_MODEL, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    theirs = json.loads((folder / "config.json").read_text())["text_config"]
    names = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
    torch.manual_seed(0)
    with without_bars():
        CLIPModel(CLIPConfig(text_config={name: theirs[name] for name in names})).save_pretrained(folder)
    side = folder / "preprocessor_config.json"
    size = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
    side.write_text(json.dumps(json.loads(side.read_text()) | size))


def write_set(folder: Path, count: int, side: int = SIDE) -> None:
    """Pairs of blurred noise, which JPEG compresses as it does photographs, with captions of uneven length."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    lines = []
    for number in range(count):
        row = {"id": f"{number:04d}", "concept": "", "split": "test" if number % 3 == 2 else "calib"}
        for name in ("safe", "unsafe"):
            small = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
            row[f"{name}_image"] = f"images/{number:04d}_{name}.jpg"
            small.resize((side, side), Image.Resampling.BICUBIC).save(folder / row[f"{name}_image"], quality=90)
            words = rng.choice(["cat", "panda", "teal", "yellow", "picture", "beer", "mug"], size=4 + number % 9)
            row[f"{name}_text"] = f"{name} {number}: {' and a '.join(words)}"
        lines.append(json.dumps(row))
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
