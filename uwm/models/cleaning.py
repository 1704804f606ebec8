"""open_clip's cleaning of captions, as normalizers that the tokenizers library runs and tokenizer.json stores."""

from __future__ import annotations

import string
from collections.abc import Iterator
from html.entities import html5, name2codepoint
from typing import Any

TERMINAL_ESCAPE = r"\x{1b}\[[\d;]*[a-zA-Z]"
FINAL_SIGMA = r"(?<=\p{L})Σ(?!\p{L})"  # Python lowers it to ς, the tokenizers library to σ


def cleaning(kind: str) -> list[Any]:
    """The steps that come before a tokenizer's own normalizer and do what open_clip's ``get_clean_fn(kind)`` does.

    They are ftfy's replacements, HTML entities (nested three deep), whitespace, and by `kind` case and punctuation.
    ftfy's repair of text in a wrong encoding is left out: it is a search, which no normalizer can express.

    Args:
        kind: ``whitespace``, ``lower`` or ``canonicalize``.
    """
    from tokenizers import Regex, normalizers

    lower = [normalizers.Replace(Regex(FINAL_SIGMA), "ς"), normalizers.Lowercase()]
    punctuation = "".join(f"\\x{{{ord(sign):x}}}" for sign in string.punctuation)
    by_kind = {
        "whitespace": [],
        "lower": lower,
        "canonicalize": [
            normalizers.Replace("_", " "),
            normalizers.Replace(Regex(f"[{punctuation}]"), ""),
            *lower,
        ],
    }
    return [
        *(normalizers.Replace("&amp;", "&") for _ in range(2)),
        *(normalizers.Replace(Regex(pattern), sign) for pattern, sign in _entities()),
        *(normalizers.Replace(Regex(pattern), sign) for pattern, sign in _signs()),
        normalizers.NFC(),
        *by_kind[kind],
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(),
    ]


def _entities() -> Iterator[tuple[str, str]]:
    """Pattern and character: HTML 4's entities, and printable ASCII by number; the longest names come first."""
    named = {code: name for name, code in name2codepoint.items()} | {ord("'"): "apos"}
    for code in sorted({*named, *range(32, 127)}, key=lambda code: (-len(named.get(code, "")), code)):
        forms = [f"#0*{code}(?:;|(?![0-9;]))", f"#[xX]0*(?i:{code:x})(?:;|(?![0-9a-fA-F;]))"]
        if code in named:
            forms.append(named[code] + (";?" if named[code] in html5 else ";"))
        yield f"&(?:{'|'.join(forms)})", chr(code)


def _signs() -> Iterator[tuple[str, str]]:
    """Pattern and replacement of ftfy: terminal escapes, ligatures, widths, control characters, quotes."""
    from ftfy import chardata

    yield TERMINAL_ESCAPE, ""
    codes: dict[str, list[int]] = {}
    for code, sign in {**chardata.LIGATURES, **chardata.WIDTH_MAP, **chardata.CONTROL_CHARS}.items():
        codes.setdefault(sign or "", []).append(code)
    for sign, found in codes.items():
        yield "[" + "".join(f"\\x{{{code:x}}}" for code in sorted(found)) + "]", sign
    yield chardata.SINGLE_QUOTE_RE.pattern, "'"
    yield chardata.DOUBLE_QUOTE_RE.pattern, '"'
