"""Every example runs as its first lines say, offline."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
SAYS = {
    "01_edit": "GS ",
    "02_thresholds": "reverted against original: 0 tensors differ",
    "03_own_tensors": "vision.5.fc2 (192, 768) mean score",
    "04_clip_benchmark": "both programs agree",
}
NEEDS = {"04_clip_benchmark": "clip_benchmark"}  # other programs that an example runs, where they are installed


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example(path, tmp_path):
    if find_spec(NEEDS.get(path.stem, "uwm")) is None:
        pytest.skip(f"{NEEDS[path.stem]} is not installed")
    command = [sys.executable, str(path), *([str(tmp_path)] if "sys.argv" in path.read_text() else [])]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert SAYS[path.stem] in done.stdout
