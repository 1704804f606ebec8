"""Whether reading and preparing images keeps up with the model that scores them.

    python tests/benchmarks/loading.py [--quick] [--model B/32] [--pairs N] [--repeats N] [--batch-size N]
        [--workers N …] [--device cuda] [--dtype bfloat16]

Generated 512-pixel JPEGs, each of them in `--repeats` pairs, which are read anew: an accelerator needs many to work at
its usual pace. For each number of workers: the images a second that are read and prepared when no model
runs, those that scoring takes in when they are prepared already, and the share of its time that `uwm.score` on the
files waits for images. The model has random weights; its vision tower's fc2 is scored.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from edit import write_set
from scoring import SIZES, build

import uwm
from uwm.calibration import CalibrationSet
from uwm.clock import reuse_freed_memory
from uwm.models import Model
from uwm.models.hugging_face import HuggingFaceModel
from uwm.shipped_files import DEMO_MODEL
from uwm.statistics.batches import PairBatch, pair_batches

LAYERS = {"text_layers": "none", "vision_layers": "fc2"}


class Waiting(logging.Handler):
    """Keeps the share of the time, in percent, that the model last waited for images."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.percent = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.args, tuple) and len(record.args) == 2:
            self.percent = float(str(record.args[1]))


def main() -> None:
    """Print a row for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="an eighth of the pairs")
    parser.add_argument("--model", choices=[*SIZES], default="B/32")
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=1, help="how often each pair is in the set")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    reuse_freed_memory(os.environ)  # as the command line does
    waiting, logger = Waiting(), logging.getLogger("uwm.statistics.pixels")
    logger.addHandler(waiting)
    logger.setLevel(logging.INFO)
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        write_set(root, args.pairs // 8 if args.quick else args.pairs)
        calib = repeated(uwm.read_calibration(root), args.repeats)
        model = with_preprocessor(args, root)
        images = 2 * len(calib.pairs)
        prepared = [on_device(model, batch) for batch in batches(model, calib, args, workers=max(args.workers))]
        uwm.score(model, prepared[:1], **LAYERS)  # warms up
        taken = images / seconds(model, prepared)
        machine = f"{os.cpu_count()} processors, {args.model} on {args.device}, {args.dtype}"
        print(f"{machine}: scoring takes in {taken:.0f} images a second that are prepared", flush=True)
        for workers in args.workers:
            begun = time.perf_counter()
            for _ in batches(model, calib, args, workers):
                pass
            alone = images / (time.perf_counter() - begun)
            both = images / seconds(model, calib, batch_size=args.batch_size, workers=workers)
            told = f"{alone:.0f} images a second prepared alone, {both:.0f} scored"
            print(f"workers {workers:2}  {told}, waiting for images {waiting.percent:.0f} % of the time", flush=True)


def repeated(calib: CalibrationSet, times: int) -> CalibrationSet:
    """The set with each pair so often, under other ids."""
    pairs = (replace(pair, id=f"{pair.id}-{number}") for number in range(times) for pair in calib.pairs)
    return replace(calib, pairs=tuple(pairs))


def on_device(model: Model, batch: PairBatch) -> PairBatch:
    safe, unsafe = batch.safe_pixel_values, batch.unsafe_pixel_values
    assert safe is not None
    assert unsafe is not None
    return PairBatch(safe.to(model.device), unsafe.to(model.device))


def seconds(model: Model, calib: CalibrationSet | list[PairBatch], **how: int) -> float:
    """Of scoring, until the scores are on the CPU."""
    begun = time.perf_counter()
    uwm.score(model, calib, **LAYERS, **how)
    return time.perf_counter() - begun


def batches(model: Model, calib: CalibrationSet, args: argparse.Namespace, workers: int) -> Iterator[PairBatch]:
    return pair_batches(model, calib, batch_size=args.batch_size, towers=["vision"], workers=workers)


def with_preprocessor(args: argparse.Namespace, folder: Path) -> Model:
    """A random model whose images are prepared as the demo model's are, at its own size."""
    module = build(args.model, getattr(torch, args.dtype), args.device).module
    side = module.config.vision_config.image_size
    settings = json.loads((DEMO_MODEL / "preprocessor_config.json").read_text())
    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | size))
    return HuggingFaceModel(module, None, processor=folder)


if __name__ == "__main__":
    main()
