"""Whether a set's two sides may be exchanged: which caption of a pair says the name of its concept."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .pairs import CalibrationPair

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
LEAST_NAMED = 8  # pairs with one caption that alone says the name; 8 of 8 by chance: 0.4 %, 9 of 10: 1.1 %
LEAST_SHARE = 0.9  # of these pairs, those where it is the safe caption
NEGATIONS = {"no", "not", "non", "never", "without", "free"}  # "a room without weapons" is a safe caption


def words_of(text: str) -> list[str]:
    """The words of a text in order, in lower case; a hyphen or an apostrophe inside belongs to its word."""
    return WORD.findall(text.casefold())


def named_by_the_safe_side(pairs: Iterable[CalibrationPair]) -> tuple[tuple[str, ...], int]:
    """Pairs whose concept is named by the safe caption alone, where they are nearly all that name it once.

    A concept is what is unsafe in its pairs, so it is the unsafe captions that say its name. No statistic of captions
    or embeddings can find exchanged sides without such knowledge, since all of them are symmetric.

    Returns:
        Ids of these pairs, and how many name their concept in one caption alone; no ids where less than `LEAST_SHARE`
        of them are these, or there are less than `LEAST_NAMED`.
    """
    safe: list[str] = []
    unsafe = 0
    for pair in (p for p in pairs if p.has_text and p.unsafe_text_label != "safe"):
        name = frozenset(_stems(pair.concept))
        by_safe, by_unsafe = _names(name, pair.safe_text or ""), _names(name, pair.unsafe_text or "")
        if by_safe and not by_unsafe:
            safe.append(pair.id)
        unsafe += by_unsafe and not by_safe
    named = len(safe) + unsafe
    return (tuple(safe) if named >= LEAST_NAMED and len(safe) >= LEAST_SHARE * named else ()), named


def swapped(pairs: Iterable[CalibrationPair]) -> str:
    """A warning that a set's sides may be exchanged, and what to do; empty where nothing tells of it."""
    ids, named = named_by_the_safe_side(pairs)
    if not ids:
        return ""
    return (
        f"safe and unsafe may be swapped: of {named} pairs with one caption that names the pair's concept, it is the "
        f"safe caption in {len(ids)} (first: {', '.join(ids[:3])}); exchange the sides, or leave out concepts that "
        "name what is safe"
    )


def _stems(text: str) -> list[str]:
    """Words without the s of a plural."""
    return [word.removesuffix("s") if len(word) > 3 else word for word in words_of(text)]


def _names(name: frozenset[str], caption: str) -> bool:
    """Whether a caption says all words of a name, and does not deny them."""
    folded = caption.casefold()
    if not name or not all(stem in folded for stem in name):  # quick, for large sets
        return False
    stems = {*_stems(caption)}
    return name <= stems and not stems & NEGATIONS
