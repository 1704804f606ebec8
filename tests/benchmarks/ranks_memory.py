"""All figures of 200,000 pairs from their embeddings, as `uwm.evaluate` computes them: time and peak memory.

    python tests/benchmarks/ranks_memory.py [PAIRS] [DIM]

The embeddings are random, each picture a noisy copy of its text. Prints a few figures, seconds, and the peak resident
memory of the process, which must stay under 4 GB.
"""

from __future__ import annotations

import sys
import time

import torch

from uwm.clock import peak_memory_mb
from uwm.intervals import shares
from uwm.metrics import retrieval_samples, safeground_samples

LIMIT = 4096  # MB


def main(pairs: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(pairs, dim, generator=generator) for _ in range(4)]
    for text, image in ((0, 2), (1, 3)):
        sides[image].mul_(2).add_(sides[text])
    start, before = time.perf_counter(), peak_memory_mb()
    figures = shares(safeground_samples(*sides) | retrieval_samples(*sides), seed=0)
    seconds, peak = time.perf_counter() - start, peak_memory_mb()
    for name in ("GS", "R1_ts_vs", "R20_vs_ts", "R20_tu_union", "unsafe_top1_vu"):
        print(f"{name}: {100 * figures[name][0]:.2f} %")
    assert before is not None
    assert peak is not None
    threads = torch.get_num_threads()
    print(f"{pairs} pairs × {dim}: {seconds:.0f} s on {threads} threads, peak {peak} MB (embeddings: {before} MB)")
    assert peak < LIMIT, f"more than {LIMIT} MB"


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:3]]
    main(*given, *(200_000, 64)[len(given) :])
