"""Whether reading and preparing images keeps up with the model that scores them.

    python tests/benchmarks/loading.py [--quick] [--model B/32] [--pairs N] [--repeats N] [--batch-size N]
        [--workers N …] [--device cuda] [--dtype bfloat16]
    python tests/benchmarks/loading.py --as-for-a-gpu --repeats 24 --workers 2 16

Generated 512-pixel JPEGs, each of them in `--repeats` pairs, which are read anew: an accelerator needs many to work at
its usual pace. For each number of workers: the images a second that are read and prepared when no model runs, those
that `uwm.score` takes in, and the share of its time that it waits for images; before them, the images a second that it
takes in when they are prepared already. The model has random weights; its vision tower's fc2 is scored.

For a GPU images are also prepared by threads alone, without processes. ``--as-for-a-gpu`` does that without a GPU, and
scores nothing. The milliseconds are processor time of the process that runs the model, the MB the memory of those that
read. The last row is of a process that has next to nothing to do: how many images can be taken in from others.

Figures are of the second half of the batches, when processes that read images have begun.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from blank import Blank
from edit import write_set
from scoring import SIZES, build

import uwm
from uwm.calibration import CalibrationSet
from uwm.clock import reuse_freed_memory
from uwm.models import Model
from uwm.models.hugging_face import HuggingFaceModel
from uwm.shipped_files import DEMO_MODEL
from uwm.statistics import reading_processes
from uwm.statistics.batches import PairBatch, pair_batches

LAYERS = {"text_layers": "none", "vision_layers": "fc2"}


class ForAccelerator(HuggingFaceModel):
    """Its images are prepared as for an accelerator."""

    device = torch.device("meta")


@dataclass(frozen=True)
class Came:
    """A batch of so many images: when it was asked for and when it came, and this process's processor seconds then."""

    asked: float
    at: float
    own: float
    images: int


def main() -> None:
    """Print a row for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of the pairs, in batches of 8")
    parser.add_argument("--model", choices=[*SIZES], default="B/32")
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=1, help="how often each pair is in the set")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--as-for-a-gpu", action="store_true", help="nothing is scored")
    args = parser.parse_args()
    if args.quick:
        args.pairs, args.batch_size = args.pairs // 4, 8
    reuse_freed_memory(os.environ)  # as the command line does
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        write_set(root, args.pairs)
        once = uwm.read_calibration(root)
        model, calib = with_preprocessor(args, root), repeated(once, args.repeats)
        print(f"{os.cpu_count()} processors, {2 * len(calib)} images")
        if not args.as_for_a_gpu:
            prepared = [on_device(model, batch) for batch in batches(model, once, args, max(args.workers))]
            uwm.score(model, prepared[:1], **LAYERS)  # warms up
            rate, _, _ = scored(model, prepared * args.repeats)
            where = f"{args.model} on {args.device}, {args.dtype}"
            print(f"{where}: scoring takes in {rate:.0f} images a second that are prepared", flush=True)
        for workers in args.workers:
            print(f"workers {workers:2}  {'; '.join(figures(model, calib, args, workers))}", flush=True)
        if args.as_for_a_gpu:
            rate, _, own = taken_in(model, root / "small", args)
            print(f"workers  1  {rate:.0f} images a second taken in from a process that prepares none ({own:.2f} ms)")


def taken_in(model: HuggingFaceModel, folder: Path, args: argparse.Namespace) -> tuple[float, float, float]:
    """The pace of images of 8 pixels that are not looked at, but sent at the model's size."""
    write_set(folder, args.pairs, side=8)
    model.preprocessor = partial(Blank, model.config.vision_config.image_size)  # type: ignore[method-assign]
    reading_processes.AFTER, came = 0, []
    for _ in watched(batches(model, repeated(uwm.read_calibration(folder), 4 * args.repeats), args, 1), came):
        pass
    return pace(came)


def figures(model: Model, calib: CalibrationSet, args: argparse.Namespace, workers: int) -> Iterator[str]:
    """Images a second with so many workers."""
    ways = {"threads": math.inf} if model.device.type == "cpu" else {"threads": math.inf, "processes": 0}
    for way, after in ways.items():
        reading_processes.AFTER = after
        came: list[Came] = []
        memory, half = 0, (-(-len(calib) // args.batch_size) - 1) // 2
        for _ in watched(batches(model, calib, args, workers), came):
            memory = memory_of_readers() if len(came) == half else memory
        rate, _, own = pace(came)
        more = f", {memory} MB" if memory else ""
        yield f"by {way} {rate:.0f} images a second prepared alone ({own:.2f} ms{more})"
    if not args.as_for_a_gpu:
        rate, waited, _ = scored(model, batches(model, calib, args, workers))
        yield f"{rate:.0f} scored, waiting for images {100 * waited:.0f} % of the time"


def memory_of_readers() -> int:
    """MB of the processes that read; what they have in common is counted once."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if "reading_server" in (process / "cmdline").read_text():
                lines = (process / "smaps_rollup").read_text().splitlines()
                total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total >> 10


def scored(model: Model, made: Iterable[PairBatch]) -> tuple[float, float, float]:
    """The pace of scoring, until the scores are on the CPU."""
    came: list[Came] = []
    uwm.score(model, watched(made, came), **LAYERS)
    return pace(came, time.perf_counter())


def watched(made: Iterable[PairBatch], came: list[Came]) -> Iterator[PairBatch]:
    """The same batches; when they came is written down."""
    made = iter(made)
    while True:
        asked = time.perf_counter()
        batch = next(made, None)
        if batch is None:
            return
        assert batch.safe_pixel_values is not None
        images = 2 * len(batch.safe_pixel_values)
        came.append(Came(asked, time.perf_counter(), time.process_time(), images))
        yield batch


def pace(came: list[Came], ended: float | None = None) -> tuple[float, float, float]:
    """Of the second half: images a second, share of the time that was waited, this process's ms an image.

    Args:
        came: The batches.
        ended: When the last of them was worked on; without it they were only taken.
    """
    before, *later = came[(len(came) - 1) // 2 :]
    images = sum(one.images for one in ([before, *later] if ended else later))
    seconds = (ended or later[-1].at) - before.at
    waited = sum(one.at - one.asked for one in later)
    return images / seconds, waited / seconds, 1000 * (later[-1].own - before.own) / images


def on_device(model: Model, batch: PairBatch) -> PairBatch:
    safe, unsafe = batch.safe_pixel_values, batch.unsafe_pixel_values
    assert safe is not None
    assert unsafe is not None
    return PairBatch(safe.to(model.device), unsafe.to(model.device))


def repeated(calib: CalibrationSet, times: int) -> CalibrationSet:
    """The set with each pair so often, under other ids."""
    pairs = (replace(pair, id=f"{pair.id}-{number}") for number in range(times) for pair in calib.pairs)
    return replace(calib, pairs=tuple(pairs))


def batches(model: Model, calib: CalibrationSet, args: argparse.Namespace, workers: int) -> Iterator[PairBatch]:
    return pair_batches(model, calib, batch_size=args.batch_size, towers=["vision"], workers=workers)


def with_preprocessor(args: argparse.Namespace, folder: Path) -> HuggingFaceModel:
    """A random model whose images are prepared as the demo model's are, at its own size."""
    module = build(args.model, getattr(torch, args.dtype), args.device).module
    side = module.config.vision_config.image_size
    settings = json.loads((DEMO_MODEL / "preprocessor_config.json").read_text())
    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | size))
    return (ForAccelerator if args.as_for_a_gpu else HuggingFaceModel)(module, None, processor=folder)


if __name__ == "__main__":
    main()
