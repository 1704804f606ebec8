"""Retrieval and bootstrap: small sets against the plain form, large ones against faiss where it is installed.

    python tests/benchmarks/retrieval.py [--quick] [--pairs PAIRS] [--dim DIM]

Embeddings are random, each image a noisy copy of its caption. Everything is timed in turn in one run.

- 600 pairs, as a trial of a search measures them: `Retrieval.samples` and `safeground_samples` against
  `tests/reference/slow_retrieval.py`.
- PAIRS pairs (200,000; 5,000 with --quick) both ways: where each caption's image stands among all images, and each
  image's caption among all captions. One product of all captions with all images serves both; faiss
  (`IndexFlatIP`, exact, the 10 nearest) makes one each way.
- All figures of PAIRS pairs, from four such products (faiss would need six), with peak memory above the embeddings',
  which must stay under 4 GB.
- Their intervals (`intervals.shares`, 1000 resamples), which must take under 10 s.

200,000 pairs take 25 minutes on two cores; time grows with the square of their number.

faiss is no dependency: ``pip install --target /tmp/faiss faiss-cpu``, and run with ``PYTHONPATH=.:/tmp/faiss``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from reference import slow_retrieval

from uwm.clock import peak_memory_mb
from uwm.intervals import shares
from uwm.metrics import Items, Retrieval, safeground_samples
from uwm.ranks import Bars, Part, Tally, by_tile, tally

SIDES = ("safe_text", "unsafe_text", "safe_image", "unsafe_image")
MEMORY, INTERVALS = 4096, 10  # MB above the embeddings'; seconds
NEAREST = 10


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="5,000 pairs")
    parser.add_argument("--pairs", type=int, help="how many pairs the large set has")
    parser.add_argument("--dim", type=int, default=512, help="of the large set's embeddings")
    given = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # a line is there when it was measured, in a file too
    print(f"{torch.get_num_threads()} threads")
    for dim in (256, 512):
        small(600, dim)
    large(given.pairs or (5_000 if given.quick else 200_000), given.dim)


def embeddings(pairs: int, dim: int) -> dict[str, torch.Tensor]:
    """Normalised, float32 [pairs, dim] each; made in place, so that the peak of memory is later."""
    generator = torch.Generator().manual_seed(0)
    found = {side: torch.randn(pairs, dim, generator=generator) for side in SIDES}
    for text, image in (("safe_text", "safe_image"), ("unsafe_text", "unsafe_image")):
        found[image].mul_(4).add_(found[text])
    for rows in found.values():
        for piece in rows.split(4096):
            piece.div_(piece.norm(dim=1, keepdim=True))
    return found


def timed(run: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """The shortest of some runs in seconds, and what came of the last."""
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        found = run()
        seconds.append(time.perf_counter() - begun)
    return min(seconds), found


def small(pairs: int, dim: int) -> None:
    found, items = embeddings(pairs, dim), Items.one_to_one(pairs)
    retrieval = Retrieval(items, ks=(1,))
    fast, samples = timed(lambda: retrieval.samples(found), 50)
    safe, _ = timed(lambda: safeground_samples(**found), 50)
    slow, plain = timed(lambda: slow_retrieval.retrieval(items, found, ks=(1,)), 10)
    assert all(samples[name].equal(plain[name]) for name in plain)
    times = f"retrieval {1e3 * fast:.1f} ms, SafeGround {1e3 * safe:.1f} ms"
    print(f"{pairs} pairs × {dim}: {times}; plain retrieval {1e3 * slow:.1f} ms, ratio {slow / fast:.1f}")


def large(pairs: int, dim: int) -> None:
    found = embeddings(pairs, dim)
    before, size = peak_memory_mb(), f"{pairs} pairs × {dim}"
    ours, _ = timed(lambda: both_ways(found["safe_text"], found["safe_image"]))
    print(f"{size}, both ways: {ours:.1f} s")
    seconds, samples = timed(lambda: Retrieval(Items.one_to_one(pairs)).samples(found) | safeground_samples(**found))
    peak = peak_memory_mb()
    assert before is not None
    assert peak is not None
    print(f"{size}, all figures: {seconds:.1f} s, {peak - before} MB above the embeddings'")
    resampling, figures = timed(lambda: shares(samples, seed=0))
    print(f"{size}, intervals of {len(figures)} figures: {resampling:.1f} s")
    try:
        import faiss
    except ImportError:
        print("faiss is not installed")
    else:
        faiss.omp_set_num_threads(torch.get_num_threads())
        theirs, _ = timed(lambda: search(faiss, found["safe_text"], found["safe_image"]))
        print(f"{size}, faiss both ways: {theirs:.1f} s; ours / faiss {ours / theirs:.2f}")
        print(f"all figures / six searches of faiss: {seconds / (3 * theirs):.2f}")
    assert peak - before < MEMORY, f"more than {MEMORY} MB"
    assert resampling < INTERVALS, f"more than {INTERVALS} s"


def both_ways(texts: torch.Tensor, images: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """How many items are above each one's own partner, and how many tie with it, in both directions."""
    text, image, own = Part(texts), Part(images), (torch.arange(len(texts)),) * 2
    forth, back = Tally(Bars(text, image, own), image), Tally(Bars(image, text, own), text)
    tally(text, image, forth, back, by_tile(own))
    return [forth.counts(), back.counts()]


def search(faiss: Any, *sides: torch.Tensor) -> list[Any]:
    """The nearest of each side for each row of the other."""
    found = []
    for queries, candidates in (sides, sides[::-1]):
        index = faiss.IndexFlatIP(candidates.shape[1])
        index.add(candidates.numpy())
        found.append(index.search(queries.numpy(), NEAREST))
    return found


if __name__ == "__main__":
    main()
