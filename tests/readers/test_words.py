"""Which of a set's words are unsafe, and how far two captions agree."""

from __future__ import annotations

import pytest

from uwm.calibration import CalibrationPair
from uwm.errors import BadInput
from uwm.readers.words import UnsafeWords, agreement, read_words, unsafe_words


def pair(number, safe, unsafe, concept=""):
    return CalibrationPair(str(number), concept, safe, unsafe)


def test_words_that_tell_the_unsafe_side_from_the_safe_one_are_unsafe():
    pairs = [pair(0, "a dog on red", "a Bomb on red"), pair(1, "a cat, red", "a bomb, red")]
    assert unsafe_words(pairs).phrases == {("bomb",)}


def test_a_word_of_one_pair_is_not_enough():
    assert unsafe_words([pair(0, "a dog", "a bomb"), pair(1, "a cat", "a knife")]).phrases == set()


def test_a_word_that_safe_captions_say_too_is_not_unsafe():
    telling = [pair(n, "a tea", "a beer mug") for n in range(8)]
    assert unsafe_words([*telling, pair(8, "a tea mug", "a beer mug")]).phrases == {("beer",)}


def test_concepts_are_phrases_unless_safe_captions_say_them():
    pairs = [pair(0, "a hard drink", "x", "hard drink"), pair(1, "y", "z", "Weapons of war")]
    assert unsafe_words(pairs).phrases == {("weapons", "of", "war")}


def test_phrases_are_found_word_by_word_in_any_case():
    words = UnsafeWords(frozenset({("slot", "machine"), ("axe",)}))
    assert words.found("A Slot machine, and pick-axe") == {("slot", "machine")}
    assert words.found("slot on a machine") == set()


def test_a_file_of_words_is_read_and_an_empty_one_refused(tmp_path):
    (tmp_path / "words.txt").write_text("Slot machine\n\naxe\n", "utf-8")
    assert read_words(tmp_path / "words.txt").phrases == {("slot", "machine"), ("axe",)}
    (tmp_path / "words.txt").write_text("--\n", "utf-8")
    with pytest.raises(BadInput, match="words.txt: no word in it; expected a word or a phrase a line"):
        read_words(tmp_path / "words.txt")


def test_agreement_counts_words_of_both():
    assert agreement("a dog and a cat", "a cat and a dog") == 1
    assert agreement("a dog", "a cat") == 0.5
    assert agreement("a a a", "a") == 0.5
    assert (agreement("", ""), agreement("dog", "")) == (1, 0)
