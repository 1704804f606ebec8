"""`uwm apply` against copying the file, on a synthetic open_clip checkpoint.

    python tests/benchmarks/apply_copy.py [GIGABYTES] [ROUNDS]

Prints the wall times and their ratio, round by round in turn (apply reads, edits, hashes, writes, syncs and verifies;
the copy copies and syncs), and apply's peak memory beyond what importing uwm takes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from uwm.checkpoint import open_checkpoint
from uwm.checkpoint.header import make_header
from uwm.patch import Patch

WIDTH = 1024
CHILD = """
import resource, sys, uwm
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
uwm.apply(sys.argv[1], uwm.Patch.load(sys.argv[2]), output=sys.argv[3])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def make_checkpoint(path: Path, gigabytes: float) -> None:
    """The matrices of vision blocks under open_clip's names until the size is reached, float32 noise."""
    blocks = max(1, int(gigabytes * 1e9 / (12 * WIDTH * WIDTH * 4)))
    tensors = [("visual.class_embedding", (WIDTH,)), ("visual.conv1.weight", (WIDTH, 3, 16, 16))]
    for block in range(blocks):
        prefix = f"visual.transformer.resblocks.{block}"
        tensors += [
            (f"{prefix}.attn.in_proj_weight", (3 * WIDTH, WIDTH)),
            (f"{prefix}.attn.out_proj.weight", (WIDTH,) * 2),
        ]
        tensors += [
            (f"{prefix}.mlp.c_fc.weight", (4 * WIDTH, WIDTH)),
            (f"{prefix}.mlp.c_proj.weight", (WIDTH, 4 * WIDTH)),
        ]
    rng = np.random.default_rng(0)
    with path.open("wb") as stream:
        stream.write(make_header((name, torch.float32, shape) for name, shape in tensors))
        for _, shape in tensors:
            rng.standard_normal(shape, dtype=np.float32).tofile(stream)


def warm_up(folder: Path) -> None:
    """Fill and free the page cache: on a virtual machine the first touch of a free page can cost more than the copy."""
    shutil.copyfile(folder / "m.safetensors", folder / "scratch")
    (folder / "scratch").unlink()


def timed_copy(folder: Path) -> float:
    warm_up(folder)
    start = time.perf_counter()
    subprocess.run(["cp", str(folder / "m.safetensors"), str(folder / "copy")], check=True)
    with (folder / "copy").open("rb") as stream:
        os.fsync(stream.fileno())
    seconds = time.perf_counter() - start
    (folder / "copy").unlink()
    return seconds


def timed_apply(folder: Path) -> tuple[float, int]:
    arguments = [sys.executable, "-c", CHILD, *(str(folder / n) for n in ("m.safetensors", "p.safetensors", "out"))]
    warm_up(folder)
    start = time.perf_counter()
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    shutil.rmtree(folder / "out")
    return seconds, int(done.stdout)


def main() -> None:
    gigabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_checkpoint(folder / "m.safetensors", gigabytes)
        checkpoint = open_checkpoint(folder / "m.safetensors")
        chosen = [w for w in checkpoint.weights if w.slot == "fc2"]
        flips = {w: torch.arange(0, 4 * WIDTH * WIDTH, 50) for w in chosen}
        base = {w: checkpoint.fingerprint(w) for w in chosen}
        Patch(flips, dict.fromkeys(chosen, (WIDTH, 4 * WIDTH)), base).save(folder / "p.safetensors")
        os.sync()
        size = (folder / "m.safetensors").stat().st_size / 1e9
        for _ in range(rounds):
            copied, (applied, memory) = timed_copy(folder), timed_apply(folder)
            print(
                f"{size:.1f} GB: apply {applied:.1f} s (with start-up), cp {copied:.1f} s, ratio {applied / copied:.2f}"
            )
    print(f"peak memory of apply beyond start-up: {memory} MB; largest tensor {16 * WIDTH**2 / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
