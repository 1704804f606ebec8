"""The few lines that a verb prints: labels and what they say; coloured on a terminal, plain elsewhere."""

from __future__ import annotations

import shlex
import sys
import textwrap
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import click

from ..escaping import clean, terminal
from ..text_tables import text_table

if TYPE_CHECKING:
    from ..report import Line

WIDTH, LABEL = 80, 9  # columns: of a line, and of its label
COMMAND = "NEXT"  # the label of a line that is a command, which wraps as a shell reads it
STYLES = {1: "bold green", -1: "bold red", 0: ""}


def show_lines(lines: Iterable[Line]) -> None:
    """Print lines, none wider than 80 columns or the terminal; `rich` heeds NO_COLOR."""
    if not sys.stdout.isatty():
        for line in lines:
            click.echo(terminal("\n".join(wrapped(line))))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for line in lines:
        for row in wrapped(line, min(WIDTH, console.width)):
            styled = Text(terminal(row), style=STYLES[line.sign])
            styled.stylize("bold", 0, LABEL)
            console.print(styled, soft_wrap=True)


def show_table(title: str, table: Sequence[Sequence[str]]) -> None:
    """Print a titled table: by `rich` on a terminal, which folds cells that have no room; elsewhere aligned text."""
    if not sys.stdout.isatty():
        click.echo(terminal(f"\n{clean(title)}\n{text_table(table)}"))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    head, *body = [[Text(terminal(clean(cell))) for cell in row] for row in table]
    shown = Table(box=box.SIMPLE_HEAD, title=Text(terminal(clean(title))), title_justify="left", pad_edge=False)
    for number, cell in enumerate(head):
        shown.add_column(cell, justify="right" if number else "left", overflow="fold")
    for row in body:
        shown.add_row(*row)
    Console(highlight=False).print("", shown, sep="\n")


def wrapped(line: Line, width: int = WIDTH) -> list[str]:
    """A line as rows of at most so many columns, the label before the first."""
    room = max(width - LABEL, 20)
    rows = (_command if line.label == COMMAND else _words)(clean(line.text), room)
    labels = [line.label, *[""] * (len(rows) - 1)]
    return [f"{label:{LABEL}}{row}".rstrip() for label, row in zip(labels, rows, strict=True)]


def _words(text: str, room: int) -> list[str]:
    return textwrap.wrap(text, room, break_on_hyphens=False, break_long_words=False) or [""]


def _command(text: str, room: int) -> list[str]:
    """A command in rows that a shell reads as one: each but the last ends with a backslash."""
    if len(text) <= room:
        return [text]
    rows: list[str] = []
    for word in map(shlex.quote, shlex.split(text)):
        if rows and len(rows[-1]) + 1 + len(word) <= room - 2:
            rows[-1] += f" {word}"
        else:
            rows.append(word)
    return [f"{row} \\" for row in rows[:-1]] + rows[-1:]


def again(changed: Sequence[str] = (), without: Iterable[str] = (), switches: Iterable[str] = ()) -> str:
    """The command that is running, as a shell reads it, with other flags.

    Args:
        changed: Words to add at the end, such as ``--method repel``.
        without: Flags to leave out with their values.
        switches: Flags without values to leave out.
    """
    given = click.get_current_context().find_root().obj or []
    values, bare = {*without}, {*switches}
    kept, skip = [], False
    for word in given:
        flag = word.partition("=")[0].replace("_", "-") if word.startswith("--") else word
        if skip or flag in bare or flag in values:
            skip = not skip and flag in values and "=" not in word
            continue
        kept.append(word)
    return shlex.join(["uwm", *kept, *changed])


def given(flag: str) -> bool:
    """Whether the command that is running has a flag."""
    return bool(flags_given((flag,)))


def flags_given(names: Iterable[str]) -> list[str]:
    """Those of some flags with a value that the running command has, with their values."""
    words, found = click.get_current_context().find_root().obj or [], []
    for word, following in pairwise([*words, ""]):
        if word.partition("=")[0].replace("_", "-") in {*names} and word.startswith("--"):
            found += [word] if "=" in word else [word, following]
    return found


def gate_lines(headline: str, rows: Sequence[Sequence[str]]) -> list[Line]:
    """PASS or FAIL, and below it every requirement, those that failed first.

    Args:
        headline: As `uwm.gate.headline`; empty where nothing is required.
        rows: Requirement, what was found, ``met`` or ``not met``; in the order to show.
    """
    from ..report import Line

    if not headline:
        return []
    sign = -1 if headline.startswith("FAIL") else 1
    found = [Line("", f"{outcome:7}  {asked}: {text}", -1 if outcome != "met" else 0) for asked, text, outcome in rows]
    return [Line("GATE", headline, sign), *found]
