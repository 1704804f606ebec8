"""The normalizers say what open_clip's cleaning of captions says."""

from __future__ import annotations

import pytest
from open_clip.tokenizer import get_clean_fn
from tokenizers import normalizers

from uwm.models.cleaning import cleaning

CAPTIONS = [
    "a dog",
    "  A  DOG\t\n",
    "",
    "salt &amp; pepper",
    "&amp;amp; &amp;quot;",
    "it&#39;s 5&#x27; &#0039;9",
    "&lt;b&gt; <i>",
    "1&nbsp;2&mdash;&eacute;&Eacute;",
    "&copyright &notin; &notit; &nosuch; & &;",
    "“it’s” a ‘dog’ ʼ „",
    "ŉ ﬁne ﬂag ǆ ĳ",
    "ＤＯＧ １ ﾊﾝ",
    "\ufeffa\x07 dog\x00",
    "\x1b[31mred\x1b[0m",
    "cafe\u0301 caf\xe9 \xc5ngstr\xf6m",
    "ΟΔΟΣ Σ ΟΣΟ",
    "İstanbul",
    "\u2615 \U0001f469\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f",
    "一只狗",
    "हिन्दी",
    "x\u200by\u2028z",
    "snake_case, #tag (50%)!",
    "<|endoftext|> <start_of_text>",
]


@pytest.mark.parametrize("kind", ["whitespace", "lower", "canonicalize"])
def test_captions_are_cleaned_as_open_clip_cleans_them(kind):
    normalizer, clean = normalizers.Sequence(cleaning(kind)), get_clean_fn(kind)
    assert [normalizer.normalize_str(text) for text in CAPTIONS] == [clean(text) for text in CAPTIONS]


def test_wrongly_decoded_characters_are_not_repaired():
    """ftfy searches for the encoding; this is what the notes of an export say is not carried over."""
    assert get_clean_fn("lower")("cafÃ©") == "café"
    assert normalizers.Sequence(cleaning("lower")).normalize_str("cafÃ©") != "café"
