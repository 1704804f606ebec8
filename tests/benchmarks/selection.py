"""Top mass by a partition against the sort of all scores that defines it.

    OMP_NUM_THREADS=2 python tests/benchmarks/selection.py [--quick]

Scores of several distributions at the size of ViT-L/14's fc2 and of a text tower's out_proj. Processor seconds of both
are measured in turn; printed are medians and the median of the ratios. The indices must be equal. With
`--quick` two rounds in place of five, of the large size and the smaller τ.
"""

from __future__ import annotations

import os
import sys

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # a thread that waits sleeps: processor seconds are of work alone

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from reference.slow_selection import sorted_top_mass

from uwm.editing.entries.selection import top_mass

ROUNDS, QUICK = 5, 2
MASSES = 0.02, 0.1
SHAPES = ((4096, 1024), (512, 512))
DRAWS = {
    "lognormal": lambda x: x.exp(),
    "close to one": lambda x: 1 + 0.01 * x,
    "cubes": lambda x: x.abs() ** 3,
    "five values": lambda x: x.abs().mul(2).floor().clamp(max=4),
}


def seconds(run: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    begun = time.process_time()
    found = run()
    return time.process_time() - begun, found


def main() -> None:
    """Print a row a distribution, size and τ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds of the large size and the smaller τ")
    short = parser.parse_args().quick
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors, {torch.get_num_threads()} threads"
    )
    print(f"torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    print("scores                         τ      partition s   sort s   ratio")
    for shape in SHAPES[:1] if short else SHAPES:
        for name, draw in DRAWS.items():
            scores = draw(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
            for mass in MASSES[:1] if short else MASSES:
                quick, slow = [], []
                for _ in range(QUICK if short else ROUNDS):
                    fast, found = seconds(lambda: top_mass(scores, mass))  # noqa: B023
                    full, expected = seconds(lambda: sorted_top_mass(scores, mass))  # noqa: B023
                    assert torch.equal(found, expected)
                    quick.append(fast)
                    slow.append(full)
                ratio = statistics.median(b / a for a, b in zip(quick, slow, strict=True))
                row = f"{shape[0]} × {shape[1]} {name}"
                partition, sort = statistics.median(quick), statistics.median(slow)
                print(f"{row:30} {mass:.2f}   {partition:8.3f}   {sort:8.3f}   {ratio:.1f}")
    print(f"load {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
