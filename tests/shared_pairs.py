"""Sets in which several pairs share an image, and calibration and test share images and captions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image


def write_set(folder: Path, rows: list[dict]) -> Path:
    """Write rows as a native set; every image that they name is drawn, each its own."""
    rng = np.random.default_rng(11)
    names = sorted({row[key] for row in rows for key in ("safe_image", "unsafe_image") if key in row})
    folder.mkdir(parents=True)
    for name in names:
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / name)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def row(number: int, safe_image: int, split: str = "") -> dict:
    """A pair with captions and an unsafe image of its own, and a numbered safe image."""
    return {
        "id": f"{number:03d}",
        "safe_text": f"a dog number {number}",
        "unsafe_text": f"a knife number {number}",
        "safe_image": f"safe{safe_image}.png",
        "unsafe_image": f"unsafe{number}.png",
        "split": split,
    }


def five_a_image(folder: Path, pairs: int = 60) -> Path:
    """Every safe image is in five pairs, which do not stand together."""
    return write_set(folder, [row(n, n % (pairs // 5)) for n in range(pairs)])


def leaking(folder: Path) -> Path:
    """20 pairs of calib and 6 of test: three of test have an image of calib, one of these and another a caption too."""
    rows = [row(n, n, "calib" if n < 20 else "test") for n in range(26)]
    for number, other in ((20, 0), (21, 1), (22, 1)):
        rows[number]["safe_image"] = f"safe{other}.png"
    rows[22]["unsafe_text"] = "A knife  number 7"
    rows[23]["safe_text"] = "a knife number 8"  # safe here, unsafe there
    return write_set(folder, rows)
