"""Start the program as torchrun does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NOISE = (
    "Traceback",
    "  ",
    "E1",
    "W1",
    "torch.distributed",
    "====",
    "----",
    "Failures:",
    "[",
    "Root Cause",
    "uwm FAILED",
)


def launch(count: int, *arguments: object, folder: Path, **environment: str) -> subprocess.Popen:
    """A run of so many processes; one is started without torchrun. `folder` holds its cache."""
    start = ["-m", "torch.distributed.run", "--nproc-per-node", str(count)] if count > 1 else []
    return begin([*start, *arguments], folder / f"cache-{count}", **environment)


def begin(arguments: Sequence[object], cache: Path, **environment: str) -> subprocess.Popen:
    """A Python process, in a session of its own."""
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(cache)}
    paths = [str(HERE / "faults"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, **own, "PYTHONPATH": os.pathsep.join(paths), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ours(told: str) -> list[str]:
    """The lines of standard error without those that torchrun writes when a process fails."""
    return [line for line in told.splitlines() if line.strip() and not line.startswith(NOISE)]
