"""Numbers and rows of cells as text."""

from __future__ import annotations

from collections.abc import Sequence

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
