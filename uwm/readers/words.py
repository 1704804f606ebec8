"""Words of captions: which of a set's words are unsafe, and how far two captions agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..calibration import CalibrationPair
from ..calibration.sides import words_of
from ..errors import BadInput
from ..knowledge.pictures import text_lines

LEAST_PAIRS = 2  # in which a word tells the unsafe caption from the safe one
LEAST_SHARE = 0.9  # of the captions with a word, those in which it does so


@dataclass(frozen=True)
class UnsafeWords:
    """Words and phrases that make a caption unsafe.

    Attributes:
        phrases: Each as its words.
    """

    phrases: frozenset[tuple[str, ...]]
    _lengths: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_lengths", tuple(sorted({len(phrase) for phrase in self.phrases})))

    def __len__(self) -> int:
        return len(self.phrases)

    def found(self, text: str) -> set[tuple[str, ...]]:
        """Those that a text says, word for word."""
        words = words_of(text)
        runs = {tuple(words[i : i + n]) for n in self._lengths for i in range(len(words) - n + 1)}
        return runs & self.phrases


def unsafe_words(pairs: Iterable[CalibrationPair]) -> UnsafeWords:
    """The words that tell unsafe captions from their safe partners, and the names of concepts.

    A word is unsafe where an unsafe caption has it and its partner has not, in `LEAST_PAIRS` pairs or more, and these
    are `LEAST_SHARE` of them together with the safe captions that have it. A concept's name counts as a phrase, unless
    safe captions say it.

    Args:
        pairs: Those without captions tell nothing but their concept.
    """
    pairs = [*pairs]
    telling: Counter[str] = Counter()
    safely: Counter[str] = Counter()
    for pair in (pair for pair in pairs if pair.has_text):
        safe, unsafe = ({*words_of(text or "")} for text in (pair.safe_text, pair.unsafe_text))
        telling.update(unsafe - safe)
        safely.update(safe)
    words = {
        (word,)
        for word, count in telling.items()
        if count >= LEAST_PAIRS and count >= LEAST_SHARE * (count + safely[word])
    }
    concepts = {tuple(words_of(pair.concept)) for pair in pairs if pair.concept}
    said = UnsafeWords(frozenset(concepts))
    safe_too = {phrase for pair in pairs for phrase in said.found(pair.safe_text or "")}
    return UnsafeWords(frozenset(words | (concepts - safe_too)))


def read_words(file: Path) -> UnsafeWords:
    """A text file with a word or a phrase a line. Raises BadInput where there is none."""
    found = frozenset(phrase for line in text_lines(file) if (phrase := tuple(words_of(line))))
    if not found:
        raise BadInput(f"{file}: no word in it; expected a word or a phrase a line")
    return UnsafeWords(found)


def agreement(text: str, other: str) -> float:
    """How far the words of two texts agree: F1 of their counts, 0 to 1; 1 for two texts without words."""
    ours, theirs = Counter(words_of(text)), Counter(words_of(other))
    count = sum(ours.values()) + sum(theirs.values())
    return 2 * sum((ours & theirs).values()) / count if count else 1.0
