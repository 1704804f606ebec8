"""Sets whose sides a linear detector can tell: unsafe captions are longer and name weapons, pictures are redder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

import uwm
from uwm.editing.closed_form.repel import EDITOR
from uwm.editing.making import about, gather, make_patch
from uwm.editing.settings import make

SAFE_WORDS, UNSAFE_WORDS = ("dog", "cat", "tree", "car", "cup"), ("knife", "bomb", "skull")


def telling_set(folder: Path, count: int = 40, held_out: int = 0) -> uwm.CalibrationSet:
    """Pairs as they are read from a folder; every fifth caption and picture is as good as of the other side."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(5)
    lines = []
    for i in range(count):
        row = {
            "id": f"{i:04d}",
            "concept": ("weapons", "death", "weapons")[i % 3],
            "split": "calib" if i < count - held_out else "test",
        }
        for side, words in (("safe", SAFE_WORDS), ("unsafe", SAFE_WORDS if i % 5 == 0 else UNSAFE_WORDS)):
            drawn = rng.choice(words, size=rng.integers(1, 5) + 2 * (side == "unsafe"))
            row[f"{side}_text"] = f"a picture of {' and '.join([*drawn, rng.choice(SAFE_WORDS)])} number {i}"
            picture = rng.integers(0, 200, (64, 64, 3))
            if side == "unsafe" and i % 5 != 1:
                picture[:, :32, 0] += 55
            row[f"{side}_image"] = f"images/{i:04d}_{side}.png"
            Image.fromarray(picture.astype(np.uint8)).save(folder / row[f"{side}_image"])
        lines.append(json.dumps(row))
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return uwm.read_calibration(folder)


def reordered(calib: uwm.CalibrationSet, rows) -> uwm.CalibrationSet:
    """Some of the pairs in another order, or several times; ids stay different."""
    return replace(calib, pairs=tuple(replace(calib.pairs[n], id=f"{k}") for k, n in enumerate(rows)))


def swapped(calib: uwm.CalibrationSet) -> uwm.CalibrationSet:
    """What was safe is unsafe."""
    return replace(
        calib,
        pairs=tuple(
            replace(
                p, safe_text=p.unsafe_text, unsafe_text=p.safe_text, safe_image=p.unsafe_image,
                unsafe_image=p.safe_image,
            )
            for p in calib.pairs
        ),
    )  # fmt: skip


def fed(model, calib, batch_size=10, preserve=None, **given):
    """Statistics and settings after the pass."""
    settings = make(EDITOR, given)
    statistics = EDITOR.statistics(model, about(calib), settings)
    gather(model, statistics, calib, batch_size=batch_size, preserve=preserve)
    return statistics, settings


def proposed(model, calib, batch_size=10, preserve=None, **given):
    return EDITOR.edit(model, *fed(model, calib, batch_size, preserve, **given))


def patch_of(model, proposal):
    return make_patch(model, proposal, {"method": "repel"})


def values(change) -> np.ndarray:
    """New values of an edit's entries, as float64."""
    return change.values.dtype.doubles(change.values.array)
