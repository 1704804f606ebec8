"""Start the program as torchrun does."""

from __future__ import annotations

import os
import subprocess
import sys
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
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(folder / f"cache-{count}")}
    own["PYTHONPATH"] = os.pathsep.join([str(HERE / "faults"), str(ROOT)])
    return subprocess.Popen(
        [sys.executable, *start, *map(str, arguments)],
        env={**os.environ, **own, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ours(told: str) -> list[str]:
    """The lines of standard error without those that torchrun writes when a process fails."""
    return [line for line in told.splitlines() if line.strip() and not line.startswith(NOISE)]
