"""Run the program as users do, in a process of its own, with a Hub and caches of its own, and watch its sockets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

WATCH = """
import os, sys
def _watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        with open(os.environ["SOCKETS"], "a") as log:
            log.write(f"{event} {arguments[-2:]}\\n")
sys.addaudithook(_watch)
"""  # runs as sitecustomize, before anything else in the process


class Program:
    """`uwm` with its own home; `sockets()` tells what it tried to reach, whether it succeeded or not."""

    def __init__(self, folder: Path, endpoint: str, start: tuple[str, ...] = ("-m", "uwm")):
        self.log, self.start = folder / "sockets.txt", start
        (folder / "site").mkdir(exist_ok=True)
        (folder / "site" / "sitecustomize.py").write_text(WATCH)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "UWM_", "TRANSFORMERS_"))}
        kept.pop("HUGGING_FACE_HUB_TOKEN", None)
        root = Path(__file__).parents[1]
        self.environment = kept | {
            "PYTHONPATH": os.pathsep.join([str(folder / "site"), str(root)]),
            "HOME": str(folder),
            "HF_HOME": str(folder / "hf-home"),
            "HF_ENDPOINT": endpoint,
            "HF_HUB_DISABLE_XET": "1",  # its servers are not faked
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "*",
            "SOCKETS": str(self.log),
        }

    def __call__(self, *arguments: object, **environment: str) -> tuple[int, str, str]:
        """Arguments and environment variables -> (exit code, stdout, stderr)."""
        done = subprocess.run(
            [sys.executable, *self.start, *map(str, arguments)],
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        return done.returncode, done.stdout, done.stderr

    def sockets(self) -> list[str]:
        """Every attempt to reach something since the last call."""
        found = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return found
