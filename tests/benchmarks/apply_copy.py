"""`uwm apply` against copying the file, on a synthetic open_clip checkpoint.

    python tests/benchmarks/apply_copy.py [GIGABYTES] [ROUNDS] [cold]

Prints, round by round in turn, the wall time of the copy (copied and synced) and of apply as a program, with the ratio
of the whole and of each stage: start-up (the interpreter, imports, the patch), fit (the base matrices are hashed) and
write (read, edit, write, hash, sync, read back, compare). Beside them the processor's seconds, which do not depend on
who else uses the machine; at last the ratios' median and range and apply's peak memory, all of it. With ``cold`` the checkpoint has to come from the disk,
as it does the first time; without, it is in memory already.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from uwm.checkpoint import open_checkpoint
from uwm.checkpoint.header import make_header
from uwm.patch import Patch

WIDTH = 1024
CHILD = """
import json, resource, sys, time
from uwm import rewrite
from uwm.patch_file import Patch
stages = {}
def timed(name, function):
    def call(*arguments, **settings):
        start = time.perf_counter()
        try:
            return function(*arguments, **settings)
        finally:
            stages[name] = time.perf_counter() - start
    return call
rewrite.fit, rewrite.write_patched = timed("fit", rewrite.fit), timed("write", rewrite.write_patched)
rewrite.apply(sys.argv[1], Patch.load(sys.argv[2]), output=sys.argv[3])
used = resource.getrusage(resource.RUSAGE_SELF)
status = open("/proc/self/status").read()  # ru_maxrss would count the parent, up to the exec
peak = int(status.split("VmHWM:")[1].split()[0]) // 1024
assert "torch" not in sys.modules
print(json.dumps({"stages": stages, "cpu": used.ru_utime + used.ru_stime, "memory": peak}))
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
        stream.write(make_header((name, "float32", shape) for name, shape in tensors))
        for _, shape in tensors:
            rng.standard_normal(shape, dtype=np.float32).tofile(stream)


def warm_up(folder: Path) -> None:
    """Fill and free the page cache: on a virtual machine the first touch of a free page can cost more than the copy."""
    shutil.copyfile(folder / "m.safetensors", folder / "scratch")
    (folder / "scratch").unlink()
    if "cold" in sys.argv:
        with (folder / "m.safetensors").open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed_copy(folder: Path) -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    warm_up(folder)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(["cp", str(folder / "m.safetensors"), str(folder / "copy")], check=True)
    with (folder / "copy").open("rb") as stream:
        os.fsync(stream.fileno())
    seconds = time.perf_counter() - start
    (folder / "copy").unlink()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def timed_apply(folder: Path) -> dict:
    arguments = [sys.executable, "-c", CHILD, *(str(folder / n) for n in ("m.safetensors", "p.safetensors", "out"))]
    warm_up(folder)
    start = time.perf_counter()
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    shutil.rmtree(folder / "out")
    found = json.loads(done.stdout)
    startup = seconds - sum(found["stages"].values())
    return found | {"seconds": seconds, "stages": {"start-up": startup, **found["stages"]}}


def main() -> None:
    gigabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_checkpoint(folder / "m.safetensors", gigabytes)
        checkpoint = open_checkpoint(folder / "m.safetensors")
        chosen = [w for w in checkpoint.weights if w.slot == "fc2"]
        flips = {w: np.arange(0, 4 * WIDTH * WIDTH, 50) for w in chosen}
        base = {w: checkpoint.fingerprint(w) for w in chosen}
        Patch(flips, dict.fromkeys(chosen, (WIDTH, 4 * WIDTH)), base).save(folder / "p.safetensors")
        os.sync()
        size = (folder / "m.safetensors").stat().st_size / 1e9
        ratios = []
        for _ in range(rounds):
            (copied, copied_cpu), done = timed_copy(folder), timed_apply(folder)
            parts = ", ".join(f"{name} {value:.2f} s ({value / copied:.2f})" for name, value in done["stages"].items())
            ratios.append(done["seconds"] / copied)
            print(
                f"{size:.1f} GB: cp {copied:.2f} s (processor {copied_cpu:.2f}), apply {done['seconds']:.2f} s "
                f"(processor {done['cpu']:.2f}), ratio {ratios[-1]:.2f}: {parts}",
                flush=True,
            )
    print(f"ratio: median {np.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")
    print(f"peak memory of apply: {done['memory']} MB; largest tensor {16 * WIDTH**2 / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
