"""What tests of a comparison share: a tiny data set for zero-shot, and what of its files may differ between runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from uwm import records

CLASSES = ("dog", "cat", "knife")
COSTS = ("seconds", "peak_memory_mb", "peak_device_mb")


def zero_shot_folder(root: Path) -> Path:
    """Four random pictures of each of three classes, one of them unsafe."""
    rng = np.random.default_rng(5)
    folder = root / "things"
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / name / f"{i}.png")
    (folder / "classnames.txt").write_text("\n".join(sorted(CLASSES)))
    (root / "unsafe_classes.txt").write_text("knife\n")
    return folder


def results(output: Path) -> dict[str, tuple]:
    """Every result by its key, without what it took."""
    found = {}
    for path in sorted((output / "results").iterdir()):
        tensors, about = records.read(path, "comparison result")
        about.pop("costs")
        found[path.stem] = ({name: tensor.tolist() for name, tensor in tensors.items()}, about)
    return found


def figures(output: Path) -> dict:
    """comparison.json without what the runs took."""
    whole = json.loads((output / "comparison.json").read_text("utf-8"))
    for rows in whole["tables"].values():
        for row in rows:
            for cost in COSTS:
                del row[cost]
    return whole


class Watch:
    """Progress that notes every bar, and may stop the run as Ctrl-C does when `until` bars have been shown."""

    def __init__(self, until: int | None = None):
        self.bars: list[str] = []
        self.stages: list[str] = []
        self.planned: list[str] = []
        self.until = until

    def __call__(self, items, total, name):
        self.bars.append(name)
        if self.until is not None and len(self.bars) > self.until:
            raise KeyboardInterrupt
        return items

    def plan(self, stages):
        self.planned = [*stages]

    def stage(self, name, steps):
        self.stages.append(name)

    def finish(self):
        self.stages.append("")

    def count(self, what: str) -> int:
        """How many bars of this name there were, whatever run they belong to."""
        return sum(name.endswith(what) for name in self.bars)
