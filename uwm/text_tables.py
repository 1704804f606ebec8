"""Rows of cells as text."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(table: Sequence[Sequence[str]]) -> str:
    """Aligned columns for a terminal."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))) for row in table]  # noqa: E501  # fmt: skip
    return "\n".join(line.rstrip() for line in lines)


def markdown_table(table: Sequence[Sequence[str]]) -> str:
    """The same as Markdown."""
    head, *body = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([head, "|" + "---|" * len(table[0]), *body])
