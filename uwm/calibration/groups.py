"""What pairs share: captions and images that occur in more than one, and whole groups of pairs that hang together."""

from __future__ import annotations

import random
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint import file_sha256
from ..errors import BadInput

CAPTION, IMAGE = "caption", "image"
Item = tuple[str, str]  # CAPTION or IMAGE, and what is equal for equal ones, on whichever side of a pair


@dataclass(frozen=True)
class Shared:
    """How many pairs of a set hold a caption or an image of another set, and how many different ones of each."""

    pairs: int
    captions: int
    images: int


class ImageHashes:
    """Path -> sha256 of the file; each file is read once, and again when its size or time has changed."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int], str] = {}

    def __call__(self, path: Path) -> str:
        """Raises BadInput when the file cannot be read."""
        try:
            found = path.stat()
            key = (str(path), found.st_size, found.st_mtime_ns)
            if key not in self._known:
                self._known[key] = file_sha256(path)
        except OSError as error:
            raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
        return self._known[key]


def same_caption(text: str) -> str:
    """A caption without what most text towers do not see: case, runs of white space, how accents are composed."""
    folded = unicodedata.normalize("NFD", text).casefold()  # the canonical caseless match of Unicode, section 3.13
    return " ".join(unicodedata.normalize("NFD", folded).split())


def connected(items: Sequence[Iterable[Hashable]]) -> list[int]:
    """The group of each row: rows that share an item are in one, and so on from row to row.

    Returns:
        Numbers from 0, in the order of the groups' first rows.
    """
    parent = list(range(len(items)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    first: dict[Hashable, int] = {}
    for row, own in enumerate(items):
        for item in own:
            one, other = sorted((root(row), root(first.setdefault(item, row))))
            parent[other] = one  # the first row of a group is its root
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(row), len(numbers)) for row in range(len(items))]


def draw(groups: Sequence[int], wanted: int, seed: int) -> set[int]:
    """Draw whole groups with about `wanted` rows together, at random with the seed.

    Groups are taken in random order as long as they fit; then one more, of the smallest left, where that comes nearer.
    So the number is off by half of the smallest group left at most, unless that is the last one. Where every row is a
    group of its own these are `wanted` rows.

    Args:
        groups: The group of each row, from `connected`; at least two.
        wanted: At least 1, fewer than there are rows.

    Returns:
        The rows; at least one group, and never all.
    """
    sizes, rng = Counter(groups), random.Random(seed)
    order = rng.sample(range(len(sizes)), min(wanted, len(sizes)))
    others = sorted(sizes.keys() - set(order))
    rng.shuffle(others)
    chosen: set[int] = set()
    count = 0
    for group in (*order, *others):
        if count + sizes[group] <= wanted:
            chosen.add(group)
            count += sizes[group]
    left = [group for group in (*order, *others) if group not in chosen]
    least = min(left, key=lambda group: sizes[group])
    if not chosen or (len(left) > 1 and count + sizes[least] - wanted < wanted - count):
        chosen.add(least)
    return {row for row, group in enumerate(groups) if group in chosen}


def shared(seen: frozenset[Item], pairs: Iterable[frozenset[Item]]) -> Shared:
    """What pairs, each given by its items, hold of items that were seen elsewhere."""
    common = [found for items in pairs if (found := items & seen)]
    kinds = Counter(kind for kind, _ in frozenset[Item]().union(*common))
    return Shared(len(common), kinds[CAPTION], kinds[IMAGE])
