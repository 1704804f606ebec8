"""What a set holds and what is odd about it, for `uwm calib-check`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from ..images import bad_images
from .pairs import CalibrationSet, image_paths


def check(calibration: CalibrationSet) -> dict[str, Any]:
    """Counts by concept and split, and everything odd: identical or duplicate pairs, leakage between splits.

    Returns:
        A plain dictionary for `uwm calib-check`; the lists under ``warnings`` are empty for a clean set.
    """
    pairs = calibration.pairs
    texts = Counter((p.safe_text, p.unsafe_text) for p in pairs if p.has_text)
    seen: dict[tuple, set[str]] = {}
    contents = [pair.content() for pair in pairs]
    for pair, content in zip(pairs, contents, strict=True):
        for part in (content[:2], content[2:]):
            if part != (None, None):
                seen.setdefault(part, set()).add(pair.split)
    warnings = {
        "identical_texts": [p.id for p in pairs if p.has_text and p.safe_text == p.unsafe_text],
        "identical_images": [p.id for p, c in zip(pairs, contents, strict=True) if p.has_image and c[2] == c[3]],
        "duplicate_captions": [f"{a} | {b}" for (a, b), n in texts.items() if n > 1],
        "leakage_between_splits": [f"{a} | {b}" for (a, b), splits in seen.items() if len(splits) > 1],
        "bad_images": bad_images(image_paths(pairs)),
    }
    return {
        "pairs": len(pairs),
        "with_text": sum(p.has_text for p in pairs),
        "with_image": sum(p.has_image for p in pairs),
        "skipped": calibration.skipped | calibration.missing(),
        "splits": _counts(p.split for p in pairs),
        "concepts": _counts(p.concept for p in pairs),
        "warnings": warnings,
    }


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(value or "(none)" for value in values).items()))
