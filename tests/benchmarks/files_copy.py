"""What works on files, against copying the file: apply, revert, diff and inspect on a synthetic open_clip checkpoint.

    python tests/benchmarks/files_copy.py [GIGABYTES] [ROUNDS] [cold]

Prints, round by round in turn, the wall time of the copy (copied and synced) and of each of them as a program, with its
ratio and stages: start-up (the interpreter, imports, the patch), fit (the base matrices are hashed) and write (read,
edit, write, hash, sync, read back, compare). Beside them the processor's seconds, which do not depend on who else uses
the machine; at last the ratios' median and range, and the peak memory, all of it. With ``cold`` the checkpoint has to
come from the disk, as it does the first time; without, it is in memory already. `diff` compares two such files.
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
from uwm.editing.patch import Patch

WIDTH = 1024
VERBS = ("apply", "revert", "diff", "inspect")
CHILD = """
import json, resource, sys, time
from pathlib import Path
from uwm import inspection
from uwm.editing import diff, files
from uwm.editing.patch import Patch
stages = {}
def timed(name, function):
    def call(*arguments, **settings):
        start = time.perf_counter()
        try:
            return function(*arguments, **settings)
        finally:
            stages[name] = time.perf_counter() - start
    return call
files.fit, files.write_edited = timed("fit", files.fit), timed("write", files.write_edited)
source, done, back = (Path(sys.argv[2], name) for name in ("m.safetensors", "done", "back"))
patch = Path(sys.argv[2], "p.safetensors")
match sys.argv[1]:
    case "apply":
        files.apply(source, Patch.load(patch), output=done)
    case "revert":
        files.revert(done, Patch.load(done), output=back)
    case "diff":
        assert timed("compare", diff.diff)(source, done)
    case "inspect":
        assert timed("read", inspection.inspect)(source)
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
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as stream:
            if "cold" in sys.argv:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                while stream.read(1 << 20):
                    pass


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


def timed_verb(verb: str, folder: Path) -> dict:
    warm_up(folder)
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", CHILD, verb, str(folder)], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    found = json.loads(done.stdout)
    rest = seconds - sum(found["stages"].values())
    return found | {"seconds": seconds, "stages": {"start-up and the rest": rest, **found["stages"]}}


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
        Patch.scaled(flips, shapes=dict.fromkeys(chosen, (WIDTH, 4 * WIDTH)), base=base).save(folder / "p.safetensors")
        os.sync()
        size = (folder / "m.safetensors").stat().st_size / 1e9
        ratios: dict[str, list[float]] = {verb: [] for verb in VERBS}
        memory = {}
        for _ in range(rounds):
            copied, copied_cpu = timed_copy(folder)
            print(f"{size:.1f} GB: cp {copied:.2f} s (processor {copied_cpu:.2f})", flush=True)
            for verb in VERBS:
                done = timed_verb(verb, folder)
                ratios[verb].append(done["seconds"] / copied)
                memory[verb] = done["memory"]
                parts = ", ".join(f"{name} {value:.2f} s" for name, value in done["stages"].items())
                print(
                    f"  {verb} {done['seconds']:.2f} s (processor {done['cpu']:.2f}), ratio {ratios[verb][-1]:.2f}: {parts}",  # noqa: E501
                    flush=True,
                )
            shutil.rmtree(folder / "done")
            shutil.rmtree(folder / "back")
    for verb, values in ratios.items():
        spread = f"median {np.median(values):.2f}, from {min(values):.2f} to {max(values):.2f}"
        print(f"{verb}: ratio {spread}; peak memory {memory[verb]} MB")
    print(f"largest tensor {16 * WIDTH**2 / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
