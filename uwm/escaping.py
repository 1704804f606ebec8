"""Text from outside, as each kind of output can hold it: names and captions are other people's, and may be hostile.

`clean` is the base of all. HTML goes through `uwm.report.pages`, and a card's YAML through a YAML writer, after
`clean`.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable

REPLACED = ("Cc", "Cs", "Zl", "Zp")  # control characters, lone surrogates, which UTF-8 cannot hold, line separators
DIRECTION = {chr(n) for n in (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}  # turn text
COMMAND = re.compile(r"^(\s*)(::)|(##)(?=\w*\[)", re.MULTILINE)  # what GitHub, Azure and TeamCity take for a command
LINK = "]("
MARKDOWN = re.compile(r"[\\|<`*_]|\[(?![-−+\d])|(?<=\])\(")  # not the bracket of an interval
FORMULA = "=+-@"  # with one of these a spreadsheet's formula begins
ILLEGAL = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # in XML 1.0, of what `clean` leaves
TEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "–": "--", "−": "$-$", "±": r"$\pm$"}
    | {"τ": r"$\tau$", "∪": r"$\cup$", "→": r"$\to$"}
)


def clean(text: str) -> str:
    """One line that can be shown: U+FFFD for control characters, ends of lines and marks of direction."""
    return "".join("\ufffd" if _steers(c) else c for c in text)


def _steers(character: str) -> bool:
    return unicodedata.category(character) in REPLACED or character in DIRECTION


def _keeping(kept: str, text: str) -> str:
    """`clean`, but for some characters."""
    return "".join(c if c in kept else clean(c) for c in text)


def one_line(text: str) -> str:
    """A library's message of several lines as one."""
    return clean(" ".join(text.split()))


def error_text(error: Exception) -> str:
    """An error as a terminal shows it: one line, and a command that goes with it on the next."""
    command = getattr(error, "command", "")
    return lines([str(error).removesuffix(f"\n{command}"), *([command] if command else [])])


def lines(texts: Iterable[str]) -> str:
    """Texts, each on a line of its own."""
    return "\n".join(map(clean, texts))


def terminal(text: str) -> str:
    """Lines as a terminal or a CI log shows them: `clean`, and none is a command to the CI's runner."""
    shown = lines(text.split("\n"))
    return COMMAND.sub(lambda found: f"{found[1]}\ufffd::" if found[2] else "##\ufffd", shown)


def json_text(text: str) -> str:
    r"""JSON as a terminal can show it: the same values, with ``\uXXXX`` for what `terminal` replaces."""
    escaped = (f"\\u{ord(c):04x}" if c != "\n" and _steers(c) else c for c in text)
    return re.sub(r"##(?=\w*\[)", r"#\\u0023", "".join(escaped))


def markdown(text: str) -> str:
    """Text that Markdown shows as it is, in a table too."""
    return MARKDOWN.sub(r"\\\g<0>", clean(text))


def readable_markdown(text: str) -> str:
    """Markdown that is read as it stands, too: only what ends a cell or is HTML, code or a link is escaped."""
    return "".join(f"\\{c}" if c in "\\|<`" else c for c in clean(text)).replace(LINK, "]\\(")


def code(text: str) -> str:
    """A code span of Markdown, whatever it holds."""
    text = clean(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if len(fence) > 1 else f"`{text}`"


def csv_cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula: one that would be begins with an apostrophe."""
    text = clean(text)
    return f"'{text}" if text.lstrip("\ufffd ")[:1] in tuple(FORMULA) else text


def tex(text: str) -> str:
    """A text as LaTeX shows it."""
    return clean(text).translate(TEX)


def xml(text: str) -> str:
    """Text that XML 1.0 can hold; the writer escapes the markup."""
    return ILLEGAL.sub("\ufffd", _keeping("\t\r\n", text))


def github(text: str) -> str:
    """The message of a workflow command of GitHub Actions, escaped as in its toolkit."""
    return _keeping("\r\n", text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def file_part(text: str) -> str:
    """A name as a part of a file's name."""
    return re.sub(r"[/\\]", "_", clean(text))


class CleanLines(logging.Formatter):
    """Messages of logs as one line each."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        record.message = clean(record.message)
        return super().formatMessage(record)
