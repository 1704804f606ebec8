"""Change records, read them, and count: `PYTHONPATH=.:tests python tests/fuzz/long_run.py --minutes 10 [--seed N]`.

Every trial has its own seed, which is told where one fails; `--only SEED --kind NAME` tries that one again.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

from fuzz.kinds import attempt, kinds


def main() -> None:
    """Prints a line a kind: trials, how many were read, and the seeds that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this one seed")
    parser.add_argument("--kind", help="this one kind")
    chosen = parser.parse_args()
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as folder:
        found = [kind for kind in kinds(Path(folder)) if chosen.kind in (None, kind.name)]
        data = {kind.name: kind.path.read_bytes() for kind in found}
        if chosen.only is not None:
            print(attempt(found[0], data[found[0].name], random.Random(chosen.only)))
            return
        end, seed = time.monotonic() + 60 * chosen.minutes, chosen.seed
        tried, read, failed = Counter(), Counter(), {}
        while time.monotonic() < end:
            for kind in found:
                try:
                    read[kind.name] += attempt(kind, data[kind.name], random.Random(seed))
                except Exception as error:
                    first = f"{type(error).__name__}: {error}"[:200]
                    place = traceback.extract_tb(error.__traceback__)[-1]
                    failed.setdefault((kind.name, place.filename, place.lineno), f"seed {seed}: {first}")
                tried[kind.name] += 1
            seed += 1
    for name, count in tried.items():
        print(f"{name}: {count} trials, {read[name]} read, {count - read[name]} refused or failed")
    print(f"{sum(tried.values())} trials, {len(failed)} places that failed")
    for (name, file, line), words in failed.items():
        print(f"{name}: {Path(file).name}:{line}: {words}")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
