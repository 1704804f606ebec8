"""Connected pairs by comparing every pair with every other: the yardstick for uwm/calibration/groups.py."""

from __future__ import annotations

from itertools import combinations


def slow_connected(items):
    """The group of each row as the set of its rows; grown until nothing changes."""
    groups = [{row} for row in range(len(items))]
    changed = True
    while changed:
        changed = False
        for one, other in combinations(range(len(items)), 2):
            touching = any(item in items[other] for item in items[one]) or one in groups[other]
            if touching and groups[one] != groups[other]:
                groups[one] = groups[other] = groups[one] | groups[other]
                changed = True
    return groups


def slow_items(pair):
    """Captions in lower case, and images as bytes, of one pair."""
    texts = [text.lower() for text in (pair.safe_text, pair.unsafe_text) if text is not None]
    images = [path.read_bytes() for path in (pair.safe_image, pair.unsafe_image) if path is not None]
    return [*texts, *images]


def slow_shared_pairs(first, second):
    """How many pairs of the second set hold a caption or an image of the first."""
    return sum(
        any(item in slow_items(other) for other in first.pairs for item in slow_items(pair)) for pair in second.pairs
    )
