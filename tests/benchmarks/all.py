"""All benchmarks in one run, with the machine, the versions and the load they ran under.

    python tests/benchmarks/all.py [--quick] [--output FILE.md]

Every benchmark prints ratios that are measured in turn in its own run. With ``--quick`` the small ones and small sizes,
in two minutes; all of them take half an hour and 12 GB of memory on two cores. `results.md` beside this file is what
`--output` wrote last on an Intel Xeon, `results_epyc.md` on an AMD EPYC; `results_h200.md` has figures of a GPU.
Retrieval is compared with faiss where it is installed; `retrieval.py` by itself measures 200,000 pairs, in 25 minutes,
of which `results_200000.md` is the last run.
What needs a GPU runs where there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy
import open_clip
import torch
import transformers

HERE = Path(__file__).parent
THREADS = 2
STARTS = 5
SCORING = ["scoring.py", "--quick"]
GPU = "--device cuda --dtype bfloat16".split()
JOBS: list[tuple[str, list[str] | None, list[str]]] = [  # title; the command with --quick, if it is run then; without
    ("Scoring and the plain forward pass", [*SCORING, "--batches", "3"], ["scoring.py", "--models", "B/32", "L/14"]),
    ("The same with torch's own products", None, [*SCORING, "--torch-products", "--no-memory"]),
    ("The same at SigLIP so400m", None, [*SCORING, *"--models so400m --batches 3 --naive-batches 0".split()]),
    ("The same, stopped half-way", None, ["scoring.py", "--late", "--no-memory", "--models", "B/32", "L/14"]),
    ("The same in bfloat16", None, ["scoring.py", "--dtype", "bfloat16", "--no-memory", "--models", "L/14"]),
    ("An edit from end to end and its forward passes", ["edit.py", "--quick"], ["edit.py"]),
    ("Reading images", ["loading.py", "--quick"], ["loading.py"]),
    ("Reading images as for a GPU", None, ["loading.py", *"--as-for-a-gpu --repeats 24 --workers 2 16".split()]),
    ("Precision and the selection", None, ["precision.py"]),
    ("Score update", ["score_update.py"], ["score_update.py"]),
    ("Selection", ["selection.py", "--quick"], ["selection.py"]),
    ("Retrieval and intervals", ["retrieval.py", "--quick"], ["retrieval.py", "--pairs", "50000"]),
    ("Trials of a search", None, ["trials.py"]),
    ("Scoring on a GPU", None, ["scoring.py", *GPU, "--pairs", "128", "--models", "L/14", "so400m"]),
    (
        "Reading images for a GPU",
        None,
        ["loading.py", *GPU, *"--model L/14 --repeats 32 --batch-size 128 --workers 4 16".split()],
    ),
    ("Work on files", ["files_copy.py", "0.2", "1"], ["files_copy.py"]),
]


def main() -> None:
    """Print every benchmark as it runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two minutes")
    parser.add_argument("--output", type=Path, help="Markdown file to write as well")
    args = parser.parse_args()
    lines: list[str] = []
    for line in _all(args.quick):
        print(line, flush=True)
        lines.append(line)
    if args.output:
        args.output.write_text("\n".join(lines) + "\n", "utf-8")


def _all(quick: bool) -> Iterator[str]:
    """Lines of Markdown."""
    yield f"# Benchmarks, {time.strftime('%Y-%m-%d')}{', quick' if quick else ''}"
    yield ""
    yield f"{_processor()}, {os.cpu_count()} processors, {THREADS} threads, Python {platform.python_version()}, "
    yield f"torch {torch.__version__}, transformers {transformers.__version__}, open_clip {open_clip.__version__}, "
    yield f"numpy {numpy.__version__}"
    yield from _section("Start", ["the command's help, and the import, five times each"], _starts())
    for title, short, whole in JOBS:
        command = short if quick else whole
        if command and ("cuda" not in command or torch.cuda.is_available()):
            yield from _section(title, command, _run(command))


def _section(title: str, command: list[str], lines: Iterator[str]) -> Iterator[str]:
    begun = time.monotonic()
    yield from ("", f"## {title}", "", f"`{' '.join(command)}`, load {os.getloadavg()[0]:.1f}", "", "```")
    yield from lines
    yield from ("```", "", f"{time.monotonic() - begun:.0f} s")


def _run(command: list[str]) -> Iterator[str]:
    """What a benchmark prints. Raises CalledProcessError when it fails."""
    whole = [sys.executable, str(HERE / command[0]), *command[1:]]
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(whole, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        yield from map(str.rstrip, process.stdout)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, whole)


def _starts() -> Iterator[str]:
    """Seconds until the help is printed, and until uwm is imported, over an interpreter that does nothing."""
    commands = {"an interpreter": "", "import uwm": "import uwm", "uwm --help": "from uwm.cli import main; main()"}
    for name, code in commands.items():
        seconds = []
        for _ in range(STARTS):
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-c", code, "--help"], check=True, capture_output=True)
            seconds.append(time.perf_counter() - begun)
        yield f"{name:15} {min(seconds):.2f} to {max(seconds):.2f} s"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
