"""Numbers and rows of cells as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .escaping import clean, markdown, readable_markdown


def percent(value: float) -> str:
    """A fraction in percent with one digit."""
    return f"{100 * value:.1f}"


def signed(value: float) -> str:
    """A difference of fractions in points, with its sign."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def interval(value: Sequence[float]) -> str:
    """``12.3 [10.1, 14.4]``, from fractions."""
    mean, low, high = value
    return f"{percent(mean)} [{percent(low)}, {percent(high)}]"


def text_table(table: Sequence[Sequence[str]]) -> str:
    """Aligned columns for a terminal; cells are cleaned."""
    table = [[clean(cell) for cell in row] for row in table]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))) for row in table]  # noqa: E501  # fmt: skip
    return "\n".join(line.rstrip() for line in lines)


def text_facts(facts: Mapping[str, Any]) -> str:
    """Properties for a terminal, a name a line; a property with properties of its own takes a line for each of them."""
    head = max((len(_name(key)) for key in facts), default=0)
    lines: list[str] = []
    for key, value in facts.items():
        shown = _entries(value) if isinstance(value, Mapping) else [_value(value)]
        lines += [f"{_name(key) if n == 0 else '':{head}}  {line}" for n, line in enumerate(shown or ["none"])]
    return "\n".join(line.rstrip() for line in lines)


def _entries(value: Mapping[str, Any]) -> list[str]:
    """Its properties as aligned lines; numbers to the right."""
    rows = [(_name(key), _value(one), isinstance(one, int | float)) for key, one in value.items()]
    head = max((len(name) for name, _, _ in rows), default=0)
    width = max((len(text) for _, text, number in rows if number), default=0)
    return [f"{name:{head}}  {text.rjust(width) if number else text}" for name, text, number in rows]


def _value(value: Any) -> str:
    """In words; a property of a property in one line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{_name(key)} {_value(one)}" for key, one in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value)) or "none"
    return "none" if value is None else clean(str(value))


def _name(key: Any) -> str:
    return clean(str(key)).replace("_", " ")


def markdown_table(table: Sequence[Sequence[str]]) -> str:
    """The same as Markdown, cells escaped."""
    head, *body = ["| " + " | ".join(map(markdown, row)) + " |" for row in table]
    return "\n".join([head, "|" + "---|" * len(table[0]), *body])


def aligned_markdown(cells: Sequence[Sequence[str]], left: int) -> str:
    """A Markdown table whose columns are aligned as it stands, the first `left` of them to the left; cells escaped."""
    cells = [[readable_markdown(cell) for cell in row] for row in cells]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]

    def line(row: Sequence[str]) -> str:
        fitted = (c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        return f"| {' | '.join(fitted)} |"

    rule = "|".join("-" * (w + 2) if i < left else "-" * (w + 1) + ":" for i, w in enumerate(widths))
    return "\n".join([line(cells[0]), f"|{rule}|", *map(line, cells[1:])])
