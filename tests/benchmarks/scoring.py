"""Scoring against the plain forward pass and against a form that keeps the activations.

    OMP_NUM_THREADS=2 python tests/benchmarks/scoring.py [--quick] [--models NAME …] [--batches N] [--pairs N]
        [--naive-batches N] [--dtype bfloat16] [--late] [--device cuda] [--profile] [--torch-products] [--processes N]

Models have random weights, made from their sizes: nothing is downloaded. Scored are the vision tower's fc2 and the text
tower's out_proj, uwm's default; with ``--late`` only those of the first half of the blocks, so that the pass may stop.
Processor seconds (on an accelerator those of the wall, the device waited for) of plain forward, uwm and the naive form
are measured in turn, a batch each; all of them with the products of `uwm.statistics.products`, or with
``--torch-products`` as torch itself computes them. Pairs wait for a product of a fixed number of them, so that not
every batch has one: uwm's multiple is that of all its batches but the first. By the clock it is printed as well. The
first batch is shown apart: its safe side runs whole, and its captions once more. The roofline is what the machine would
score at if the plain forward pass ran at the rate of one large matrix product, measured on the spot in the same dtype;
pairs a second are by the same clock. Memory is the peak over the loaded model, of a process each, as the kernel counts
resident pages: as the allocator manages it, which keeps freed blocks, and with every large block given back when it is
freed (glibc's MALLOC_MMAP_THRESHOLD_), which is what the forms hold. On an accelerator it is the most that torch
allocated. With ``--profile`` torch's profiler lists what takes longest in a batch of the plain pass and of uwm.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
import transformers
from torch import profiler
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from uwm.clock import reuse_freed_memory
from uwm.editing.entries.uwm import UwmScorer
from uwm.models import Model
from uwm.models.hugging_face import HuggingFaceModel
from uwm.statistics import products
from uwm.statistics.batches import PairBatch, embed_inputs
from uwm.statistics.channel_norms import ChannelNorms
from uwm.statistics.hooks import observe
from uwm.statistics.passes import run_pass
from uwm.weights import WeightId, match

END = 49407  # the end token of CLIP's vocabulary
TEXT = {"vocab_size": END + 1, "bos_token_id": END - 1, "eos_token_id": END, "pad_token_id": END}
SIZES = {  # text and vision tower: width, blocks, heads, width of the MLP
    "B/32": ((512, 12, 8, 2048), (768, 12, 12, 3072), {"image_size": 224, "patch_size": 32}, 512),
    "L/14": ((768, 12, 12, 3072), (1024, 24, 16, 4096), {"image_size": 224, "patch_size": 14}, 768),
    "so400m": ((1152, 27, 16, 4304), (1152, 27, 16, 4304), {"image_size": 384, "patch_size": 14}, None),
}
SIZE_NAMES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def build(name: str, dtype: torch.dtype, device: str = "cpu") -> Model:
    """A model of these sizes with random weights."""
    text, vision, images, dim = SIZES[name]
    torch.manual_seed(0)
    text_config, vision_config = (dict(zip(SIZE_NAMES, sizes, strict=True)) for sizes in (text, vision))
    module: torch.nn.Module
    if dim is None:
        text_config |= {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 1}  # of SigLIP's own vocabulary
        module = SiglipModel(SiglipConfig(text_config=text_config, vision_config=vision_config | images))
    else:
        text_config |= TEXT
        config = CLIPConfig(text_config=text_config, vision_config=vision_config | images, projection_dim=dim)
        module = CLIPModel(config)
    return HuggingFaceModel(module.to(device, dtype).requires_grad_(False), None)


def make_batch(model: Model, pairs: int, seed: int) -> PairBatch:
    """Random images, and captions of uneven length as a tokenizer pads them."""
    generator = torch.Generator().manual_seed(seed)
    side, length = model.config.vision_config.image_size, model.context_length
    pixels = [torch.randn(pairs, 3, side, side, generator=generator) for _ in range(2)]
    captions = []
    for _ in range(2):
        lengths = torch.randint(length // 4, length + 1, (pairs, 1), generator=generator)
        lengths[0] = length
        ids = torch.randint(2, min(model.config.text_config.vocab_size, END) - 2, (pairs, length), generator=generator)
        mask = torch.arange(length) < lengths
        if model.config.text_config.vocab_size > END:
            ids[torch.arange(length) >= lengths - 1] = END
        captions += [ids, mask.long()]
    return PairBatch(*(images.to(model.device) for images in pixels), *captions)


def chosen(model: Model, late: bool) -> dict[WeightId, UwmScorer]:
    """A scorer for each weight that uwm scores by default; with `late` of the first half of the blocks."""
    found = match("fc2", model.weights, "vision") + match("out_proj", model.weights, "text")
    kept = [w for w in found if not late or w.block < model.depth(w.tower) // 2]
    return {weight: UwmScorer(weight, model.parameter(weight)) for weight in kept}


@torch.no_grad()
def forward(model: Model, batch: PairBatch) -> None:
    for tower in ("text", "vision"):
        for inputs, mask in batch.sides(tower):
            embed_inputs(model, inputs, mask)


@torch.no_grad()
def naive(model: Model, batch: PairBatch, sums: dict[WeightId, torch.Tensor]) -> None:
    """φ [out, in] of every sample written out from kept activations, and the sum over pairs of the ratios."""
    for tower in ("text", "vision"):
        weights = [w for w in sums if w.tower == tower]
        sides = []
        for inputs, mask in batch.sides(tower):
            kept: dict[WeightId, torch.Tensor] = {}
            with observe({w: model.owner(w) for w in weights}, lambda w, x, kept=kept: kept.update({w: x.clone()})):
                embed_inputs(model, inputs, mask)
            sides.append((kept, mask))
        for w in weights:
            magnitude = model.parameter(w).float().abs()
            for pair in range(len(sides[0][0][w])):
                phi = []
                for kept, mask in sides:
                    x = kept[w][pair] if mask is None else kept[w][pair][mask[pair].bool()]
                    norm, std = x.float().norm(dim=0), x.float().std(dim=0)
                    phi.append(torch.outer(magnitude @ norm, norm * magnitude.mean(0) / std))
                sums[w] += phi[1] / phi[0]


class Clock:
    """Seconds since it was last asked: the processor's, or on an accelerator the wall's after the device is done."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._last = device, (0.0, 0.0)

    def __call__(self) -> float:
        return self.both()[0]

    def both(self) -> tuple[float, float]:
        """The same, and those of the wall."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        wall = time.perf_counter()
        before, self._last = self._last, (time.process_time() if self._device.type == "cpu" else wall, wall)
        return self._last[0] - before[0], self._last[1] - before[1]


def measure(model: Model, args: argparse.Namespace) -> dict[str, float]:
    """Seconds of the plain pass, the median of batches, and the others' as its multiples; all in turn."""
    clock, plain, ours, naives = Clock(model.device), [], [], []
    scorers = chosen(model, args.late)

    def batches() -> Iterator[PairBatch]:
        for number in range(args.batches + 1):
            batch = make_batch(model, args.pairs, number)
            if number == 0 or model.device.type != "cpu":  # an accelerator slows its clock where batches are made
                forward(model, batch)  # warms up
            clock()
            forward(model, batch)
            plain.append(clock.both())
            if number and number <= args.naive_batches:
                naives.extend(naive_ratio(model, batch, [*scorers], clock, plain[-1][0]))
            clock()
            yield batch
            ours.append(clock.both())

    run_pass(model, batches(), [ChannelNorms(scorers)], ["text", "vision"])
    clock()
    for scorer in scorers.values():
        scorer.scores()
    finish = clock()
    multiples = [mine / own for (mine, _), (own, _) in zip(ours, plain, strict=True)]
    own, wall = (sum(column) for column in zip(*plain[1:], strict=True))
    whole, by_clock = (sum(column) for column in zip(*ours[1:], strict=True))
    found = {"plain s": statistics.median(seconds for seconds, _ in plain), "uwm": whole / own}
    found |= {"by the clock": by_clock / wall, "first": multiples[0]}
    found |= {"lowest": min(multiples[1:]), "highest": max(multiples[1:]), "scores s": finish}
    return found | ({"naive": statistics.median(naives)} if naives else {})


def naive_ratio(model: Model, batch: PairBatch, weights: list[WeightId], clock: Clock, plain: float) -> list[float]:
    """The naive form's multiple of a plain pass of so many seconds; nothing where the device has no memory for it."""
    try:
        sums = {w: torch.zeros(model.parameter(w).shape, device=model.device) for w in weights}
        clock()
        naive(model, batch, sums)
        return [clock() / plain]
    except torch.OutOfMemoryError:
        print("        the naive form does not fit")
    torch.cuda.empty_cache()
    return []


def print_roofline(model: Model, args: argparse.Namespace, seconds: float) -> None:
    """Print pairs a second of a form that takes `seconds` a batch, and how many the rate of a matrix product allows."""
    batch = make_batch(model, args.pairs, 0)
    torch_products = mock.patch.object(products, "mkl_is_slower", return_value=False)
    with torch_products, FlopCounterMode(display=False) as counted:  # it knows torch's own products alone
        forward(model, batch)
    rate = product_rate(model.device, getattr(torch, args.dtype))
    mine, most = args.pairs / seconds, args.pairs * rate / counted.get_total_flops()
    listed = f"{mine:.3g} pairs a second; roofline {most:.3g} at {rate / 1e12:.2f} TFLOP/s"
    print(f"        {listed}; share {mine / most:.2f}", flush=True)


def print_profile(model: Model, args: argparse.Namespace) -> None:
    """Print the operations that take longest in one batch: of the plain pass, and of uwm after its first batch."""
    batch = make_batch(model, args.pairs, 0)
    found = [profiler.profile(acc_events=True) for _ in range(2)]
    forward(model, batch)
    with found[0]:
        forward(model, batch)

    def batches() -> Iterator[PairBatch]:
        yield batch
        found[1].start()
        yield batch
        found[1].stop()

    run_pass(model, batches(), [ChannelNorms(chosen(model, args.late))], ["text", "vision"])
    for title, one in zip(("plain", "uwm"), found, strict=True):
        column = f"self_{model.device.type}_time_total"
        print(title, one.key_averages().table(sort_by=column, row_limit=20, max_name_column_width=50), sep="\n")


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a product of two square matrices, by the clock of `measure`; the best."""
    size = 2048 if device.type == "cpu" else 8192
    quick = device.type == "cpu" and products.mkl_is_slower()
    kind = products.OneDnnLinear if quick else torch.nn.Linear
    layer, inputs = kind(size, size, device=device, dtype=dtype), torch.randn(size, size, device=device).to(dtype)
    clock, seconds = Clock(device), []
    with torch.no_grad():
        for _ in range(8):
            clock()
            layer(inputs)
            seconds.append(clock())
    return 2 * size**3 / min(seconds)


def resident(field: str) -> float:
    """MB of resident pages: ``VmRSS`` now, ``VmHWM`` at most."""
    status = Path("/proc/self/status").read_text("utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field)) / 1e3


def peak(args: argparse.Namespace) -> None:
    """Print the most memory over the loaded model that one form takes, in MB, for two batches, and the scores'."""
    model = build(args.models[0], getattr(torch, args.dtype))
    batches = [make_batch(model, args.pairs, number) for number in range(2)]
    forward(model, make_batch(model, 1, 0))  # what libraries keep for good
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    scorers = chosen(model, args.late) if args.memory != "plain" else {}
    if args.memory == "uwm":
        run_pass(model, batches, [ChannelNorms(scorers)], ["text", "vision"])
        for scorer in scorers.values():
            scorer.scores()
    for batch in batches if args.memory == "plain" else ():
        forward(model, batch)
    if args.memory == "naive":
        scorers = {w: torch.zeros(model.parameter(w).shape) for w in scorers}
        for batch in batches:
            naive(model, batch, scorers)
    entries = sum(model.parameter(w).numel() for w in scorers)
    print(resident("VmHWM") - before, 4e-6 * entries)


def memory(name: str, form: str, args: argparse.Namespace, given_back: bool) -> tuple[float, float]:
    """MB over the model at the most, and MB of the scores in float32, from a process of its own.

    With `given_back` the allocator keeps no large block that is freed.
    """
    command = [sys.executable, __file__, "--memory", form, "--models", name, "--pairs", str(args.pairs)]
    command += ["--dtype", args.dtype, *(["--late"] if args.late else [])]
    command += ["--torch-products"] if args.torch_products else []
    environment = os.environ | ({"MALLOC_MMAP_THRESHOLD_": "65536"} if given_back else {})
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    over, scores = map(float, found.stdout.split())
    return over, scores


def print_device_memory(model: Model, args: argparse.Namespace) -> None:
    """Print the most that torch allocates over the model and a batch, for each form."""
    batch = make_batch(model, args.pairs, 0)
    peaks = {}
    for form in ("plain", "uwm"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        if form == "plain":
            forward(model, batch)
        else:
            scorers = chosen(model, args.late)
            run_pass(model, [batch], [ChannelNorms(scorers)], ["text", "vision"])
        peaks[form] = (torch.cuda.max_memory_allocated() - before) / 1e6
    scores = 4e-6 * sum(model.parameter(w).numel() for w in scorers)
    listed = "  ".join(f"{form} {found:.0f}" for form, found in peaks.items())
    print(f"        MB over model and batch, allocated: {listed}  scores {scores:.0f}")


def print_memory(name: str, args: argparse.Namespace) -> None:
    """Print a row with the allocator as it is, and one with freed blocks given back.

    What the allocator keeps differs by a tenth from one process to the next, so of that the median of a few is shown.
    """
    forms = ["plain", "uwm", *(["naive"] if args.naive_batches and not args.quick else [])]
    for given_back in (False,) if args.quick else (False, True):
        times = 1 if given_back else args.processes
        peaks = {
            form: statistics.median_low([memory(name, form, args, given_back) for _ in range(times)]) for form in forms
        }
        scores = peaks["uwm"][1]
        over = (peaks["uwm"][0] - peaks["plain"][0]) / scores
        listed = "  ".join(f"{form} {found[0]:.0f}" for form, found in peaks.items())
        how = "held" if given_back else "resident"
        print(f"        MB over the model, {how}: {listed}  scores {scores:.0f}; (uwm − plain) / scores {over:.2f}")


def main() -> None:
    """Print a row a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="B/32 alone, if none is named; what is resident alone")
    parser.add_argument("--models", nargs="+", choices=[*SIZES], default=None)
    parser.add_argument("--batches", type=int, default=6, help="batches that are measured, after the first")
    parser.add_argument("--naive-batches", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=8, help="in a batch")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--late", action="store_true")
    parser.add_argument("--memory", choices=["plain", "uwm", "naive"], help="print this form's peak and stop")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--processes", type=int, default=3, help="of whose resident memory the median is printed")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--torch-products", action="store_true")
    args = parser.parse_args()
    if args.torch_products:
        products.mkl_is_slower = lambda: False
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    reuse_freed_memory(os.environ)  # as the command line does
    if args.memory:
        peak(args)
        return
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors, {torch.get_num_threads()} threads"
    )
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, {args.dtype}, {args.pairs} pairs a batch"
    )
    print(f"load {os.getloadavg()[0]:.1f} before")
    for name in args.models or (["B/32"] if args.quick else SIZES):
        model = build(name, getattr(torch, args.dtype), args.device)
        found = measure(model, args)
        print(f"{name:7}", *(f"{what} {value:.3f}" for what, value in found.items()), sep="  ", flush=True)
        print_roofline(model, args, found["plain s"] * found["uwm"])
        if args.profile:
            print_profile(model, args)
        if args.device != "cpu":
            print_device_memory(model, args)
            continue
        del model
        if not args.no_memory:
            print_memory(name, args)
    print(f"load {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
