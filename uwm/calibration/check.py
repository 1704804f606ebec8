"""What a set holds and what is odd about it, for `uwm calib-check`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ..images import bad_images
from .groups import CAPTION, IMAGE, Item, connected
from .pairs import CalibrationPair, CalibrationSet, image_paths
from .sides import named_by_the_safe_side

LISTED = 5  # ids of a split beside an item


def check(calibration: CalibrationSet) -> dict[str, Any]:
    """Counts by concept and split, and everything odd: identical or duplicate pairs, what splits share.

    Returns:
        A plain dictionary for `uwm calib-check`; the lists under ``warnings`` are empty for a clean set. ``groups`` are
        pairs that are connected by captions or images that they share, which a hold-out keeps together.
    """
    pairs = calibration.pairs
    texts = Counter((p.safe_text, p.unsafe_text) for p in pairs if p.has_text)
    images = [(p.id, p.content(calibration.hashed)[2:]) for p in pairs if p.has_image]
    items = calibration.items()
    groups = Counter(connected(items))
    several = _in_several_splits(calibration, items)
    warnings = {
        "identical_texts": [p.id for p in pairs if p.has_text and p.safe_text == p.unsafe_text],
        "identical_images": [name for name, (safe, unsafe) in images if safe == unsafe],
        "concepts_named_by_the_safe_caption_alone": [*named_by_the_safe_side(pairs)[0]],
        "duplicate_captions": [f"{a} | {b}" for (a, b), n in texts.items() if n > 1],
        "captions_in_several_splits": several[CAPTION],
        "images_in_several_splits": several[IMAGE],
        "bad_images": bad_images(image_paths(pairs)),
    }
    return {
        "pairs": len(pairs),
        "with_text": sum(p.has_text for p in pairs),
        "with_image": sum(p.has_image for p in pairs),
        "skipped": calibration.skipped | calibration.missing(),
        "splits": _counts(p.split for p in pairs),
        "concepts": _counts(p.concept for p in pairs),
        "groups": {"connected": len(groups), "pairs_of_the_biggest": max(groups.values())},
        "warnings": warnings,
    }


def _in_several_splits(calibration: CalibrationSet, items: Sequence[frozenset[Item]]) -> dict[str, list[str]]:
    """By kind, the captions and images that several splits hold, each with its pairs."""
    holders: dict[Item, list[CalibrationPair]] = {}
    for pair, own in zip(calibration.pairs, items, strict=True):
        for item in sorted(own):
            holders.setdefault(item, []).append(pair)
    found: dict[str, list[str]] = {CAPTION: [], IMAGE: []}
    for item, pairs in holders.items():
        splits = sorted({pair.split for pair in pairs})
        if len(splits) > 1:
            name = item[1] if item[0] == CAPTION else _image(calibration, pairs[0], item)
            ids = ", ".join(_ids(split, [pair.id for pair in pairs if pair.split == split]) for split in splits)
            found[item[0]].append(f"{name}: {ids}")
    return found


def _image(calibration: CalibrationSet, pair: CalibrationPair, item: Item) -> str:
    """The path of a pair's image with this content."""
    return next(str(path) for path in image_paths([pair]) if calibration.hashed(path) == item[1])


def _ids(split: str, ids: Sequence[str]) -> str:
    more = f" and {len(ids) - LISTED} more" if len(ids) > LISTED else ""
    return f"{len(ids)} of {split or '(none)'} ({', '.join(ids[:LISTED])}{more})"


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(value or "(none)" for value in values).items()))
