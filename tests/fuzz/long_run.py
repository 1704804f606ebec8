"""Change inputs, read them, and count: `PYTHONPATH=.:tests python tests/fuzz/long_run.py --minutes 10 [--seed N]`.

Every trial has its own seed, which is told where one fails; `--kinds NAME --only SEED` tries that one again. Each kind
runs for some seconds in a process of its own, which may take so much memory and no more, and may die.
"""

from __future__ import annotations

import argparse
import itertools
import json
import mmap
import os
import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuzz.every import every_target
from fuzz.targets import Target, attempt

SECONDS = 4.0  # that a kind with a share of 1 runs at a time
MEMORY = 2 << 30  # bytes beyond what the process has; a picture of 64 megapixels takes 1.5 GB
SHARED = Path("/dev/shm")
LARGEST = 1 << 22  # bytes of an input that is kept where the process dies


def main() -> None:
    """Prints a line a kind: executions, how many were taken, and what failed; exit code 1 where something did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--kinds", default="", help="with commas between; all without")
    parser.add_argument("--only", type=int, help="this one seed")
    parser.add_argument("--keep", type=Path, help="folder for the inputs that failed")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=SHARED if SHARED.is_dir() else None) as folder:
        found = every_target(Path(folder))
        wanted = [name for name in chosen.kinds.split(",") if name] or [*found]
        if chosen.only is not None:
            print(attempt(found[wanted[0]], found[wanted[0]].draw(random.Random(chosen.only))))
            return
        tally = Tally(chosen.keep)
        for target, seed in turns([found[name] for name in wanted], chosen.minutes, chosen.seed, tally):
            tally.add(target.name, slice_of(target, seed))
    raise SystemExit(tally.told())


def turns(targets: list[Target], minutes: float, first: int, tally: Tally) -> Iterator[tuple[Target, int]]:
    """Each target in turn with its next seed, until the time is over; prints how far it is every few minutes."""
    end, told = time.monotonic() + 60 * minutes, time.monotonic()
    for target in itertools.cycle(targets):
        if time.monotonic() >= end:
            return
        if time.monotonic() > told + 300:
            tally.told()
            told = time.monotonic()
        yield target, first + tally.tried[target.name]


class Tally:
    """What was tried, taken and found."""

    def __init__(self, keep: Path | None) -> None:
        self.tried: Counter[str] = Counter()
        self.taken: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.failed: dict[tuple[str, str], str] = {}
        self._keep = keep

    def add(self, name: str, result: dict[str, Any]) -> None:
        """Count what one slice of a kind came to."""
        self.tried[name] += result["tried"]
        self.taken[name] += result["taken"]
        self.seconds[name] += result["seconds"]
        for place, (seed, words, data) in result["failed"].items():
            if (name, place) in self.failed:
                continue
            self.failed[name, place] = f"seed {seed}: {words}"
            if self._keep is not None:
                self._keep.mkdir(parents=True, exist_ok=True)
                (self._keep / f"{name.replace(' ', '-')}-{seed}").write_bytes(bytes.fromhex(data))

    def told(self) -> int:
        """Print it; 1 where something failed."""
        for name, count in self.tried.items():
            rate = count / max(self.seconds[name], 1e-9)
            print(f"{name}: {count} executions, {self.taken[name]} taken, {rate:.0f} a second")
        print(f"{sum(self.tried.values())} executions, {len(self.failed)} places that failed")
        for (name, place), words in self.failed.items():
            print(f"  {name}: {place}: {words}")
        print(flush=True)
        return int(bool(self.failed))


def slice_of(target: Target, seed: int) -> dict[str, Any]:
    """Run a target from a seed on for its share of time, in a process of its own."""
    current = mmap.mmap(-1, LARGEST + 16)
    reader, writer = os.pipe()
    begun = time.monotonic()
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            _bounded()
            _run(target, seed, begun + SECONDS * target.share, current, writer)
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as stream:
        told = stream.read()
    _, status = os.waitpid(child, 0)
    seconds = time.monotonic() - begun
    if told and not status:
        return json.loads(told) | {"seconds": seconds}
    number, length = int.from_bytes(current[:8], "little"), int.from_bytes(current[8:16], "little")
    words = f"the process died (status {status})"
    failed = {words: (number, words, current[16 : 16 + length].hex())}
    return {"tried": number - seed + 1, "taken": 0, "seconds": seconds, "failed": failed}


def _bounded() -> None:
    """Bound this process's memory, and send away what C libraries print."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _run(target: Target, seed: int, end: float, current: mmap.mmap, writer: int) -> None:
    first, taken, failed = seed, 0, {}
    while seed == first or time.monotonic() < end:
        data = b""
        try:
            data = target.draw(random.Random(seed))
            current[:16] = seed.to_bytes(8, "little") + min(len(data), LARGEST).to_bytes(8, "little")
            current[16 : 16 + min(len(data), LARGEST)] = data[:LARGEST]
            taken += attempt(target, data)
        except Exception as error:
            failed.setdefault(_place(error), (seed, f"{type(error).__name__}: {error}"[:300], data.hex()))
        seed += 1
    result = {"tried": seed - first, "taken": taken, "failed": failed}
    with open(writer, "w") as stream:
        json.dump(result, stream)


def _place(error: BaseException) -> str:
    """Where it was raised; findings of the same place differ by what they say."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "?"
    return f"{where} {str(error)[:60] if isinstance(error, AssertionError) else type(error).__name__}"


if __name__ == "__main__":
    main()
