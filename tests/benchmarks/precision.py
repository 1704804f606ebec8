"""The edit in bfloat16 and float16 against that in float32: how far the selections agree, and the seconds each takes.

    OMP_NUM_THREADS=2 python tests/benchmarks/precision.py [--model demo] [--calib FOLDER --split calib]
        [--methods uwm log-ratio] [--masses 0.02 0.1] [--batch-size N] [--per-tensor]

Each method scores the model in float32 on the CPU, which is the reference, then with bfloat16 weights and under
bfloat16's autocast there, and on the first CUDA device, where there is one, in float32, bfloat16 and float16. Printed
are the Jaccard overlap of the selected entries with the reference's, the mean of the tensors and the lowest. UWM's mean
of ratios hangs on the few pairs in which a channel hardly varies, where bfloat16 rounds most; log-ratio's mean of
logarithms does not.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import torch

import uwm
from uwm.editing.entries.selection import top_mass
from uwm.weights import WeightId

EMOJI = Path(__file__).parents[2] / "calibration" / "emoji"


def runs(cuda: bool) -> Iterator[tuple[str, str, str, bool]]:
    """Name, device, dtype, and whether under autocast."""
    yield "float32", "cpu", "float32", False
    yield "bfloat16 weights", "cpu", "bfloat16", False
    yield "bfloat16 autocast", "cpu", "float32", True
    for dtype in ("float32", "bfloat16", "float16") if cuda else ():
        yield f"CUDA {dtype}", "cuda", dtype, False


def jaccard(mine: torch.Tensor, others: torch.Tensor) -> float:
    """Overlap of two selections, bool [out, in] each."""
    return float((mine & others).sum() / (mine | others).sum().clamp_min(1))


def scored(
    args: argparse.Namespace, method: str, device: str, dtype: str, autocast: bool
) -> tuple[dict[WeightId, torch.Tensor], float]:
    """Scores of every weight, float32 [out, in], and seconds."""
    model = uwm.load(args.model, device=device, dtype=dtype)
    calib = uwm.read_calibration(args.calib, split=args.split)
    with torch.autocast(device, torch.bfloat16) if autocast else contextlib.nullcontext():
        begun = time.perf_counter()
        found = uwm.score(model, calib, method=method, batch_size=args.batch_size)
    return dict(found.tensors), time.perf_counter() - begun


def main() -> None:
    """Print a row a method, run and mass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--calib", default=str(EMOJI))
    parser.add_argument("--split", default="calib")
    parser.add_argument("--methods", nargs="+", default=["uwm", "log-ratio"])
    parser.add_argument("--masses", type=float, nargs="+", default=[0.02, 0.1])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--per-tensor", action="store_true", help="print each tensor's overlap")
    args = parser.parse_args()
    for method in args.methods:
        compare(args, method)


def compare(args: argparse.Namespace, method: str) -> None:
    """Print the rows of one method."""
    reference: dict[WeightId, torch.Tensor] = {}
    for name, device, dtype, autocast in runs(torch.cuda.is_available()):
        scores, seconds = scored(args, method, device, dtype, autocast)
        reference = reference or scores
        for mass in args.masses:
            overlaps = {w: jaccard(*(selected(s[w], mass) for s in (reference, scores))) for w in scores}
            weakest = min(overlaps, key=lambda w: overlaps[w])
            mean = sum(overlaps.values()) / len(overlaps)
            told = f"Jaccard mean {mean:.3f}, lowest {overlaps[weakest]:.3f} ({weakest})"
            print(f"{method:9}  {name:18} mass {mass:<5} {told}  {seconds:.1f} s", flush=True)
            if args.per_tensor:
                print(*(f"    {w}: {value:.3f}" for w, value in overlaps.items()), sep="\n")


def selected(scores: torch.Tensor, mass: float) -> torch.Tensor:
    """Which entries hold that share of the scores, bool [out, in]."""
    chosen = torch.zeros(scores.numel(), dtype=torch.bool)
    chosen[top_mass(scores, mass)] = True
    return chosen


if __name__ == "__main__":
    main()
