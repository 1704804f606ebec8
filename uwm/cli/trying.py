"""`uwm try`: one caption or image, and what it finds before and after an edit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..clock import now
from ..escaping import clean, terminal
from .flags import COMMON, IMAGES, MODEL, PATH, print_json, split_flags, warn
from .group import uwm
from .progress import progress_of
from .terminal import WIDTH, show_lines

if TYPE_CHECKING:
    from ..trying import Hit, Tried

UNSAFE = "✗"
LONGEST = 120  # letters of a caption that are shown


@uwm.command(name="try")
@click.argument("given", nargs=-1, metavar="[MODEL [EDITED] QUERY]")
@click.option("--images", help="What to search: a folder of images, or a calibration set.")
@click.option("--split", help="Split of the calibration set to search.")
@IMAGES
@click.option("--top", type=click.IntRange(1, 100), default=5, show_default=True, help="Results to show.")
@click.option("--html", type=PATH, help="Write the results as one page too, with the images found.")
@MODEL
@COMMON
def try_(given: tuple[str, ...], html: Path | None, **flags: Any) -> None:
    """What a caption or an image finds, before and after an edit, side by side.

    QUERY is a caption, which searches images, or an image file, which searches captions: of a calibration set, or the
    names of the files of a folder. EDITED is a model, or a patch of MODEL. Without arguments: the demo model and set.
    """
    from ..evaluating import ReportFiles, hold_reports
    from ..trying import TryRecipe, run_try, try_page

    if len(given) == 1 or len(given) > 3:
        raise click.UsageError(f"expected MODEL [EDITED] QUERY, or nothing for the demo; found {len(given)} arguments")
    settings, show = split_flags(flags)
    named = dict(zip(("model", "query") if len(given) == 2 else ("model", "edited", "query"), given, strict=False))
    recipe = TryRecipe(**(named | settings))
    with hold_reports(recipe.reads(), ReportFiles(html=html)) as reports:
        tried = run_try(recipe, progress=progress_of(show))
        warn(show, (*reports.notes, *map(clean, tried.warnings)))
        if show["as_json"]:
            print_json(tried.as_dict())
        else:
            _show(tried)
        reports.put("", (), (), lambda: try_page(tried, {"date": now()}))


def _show(tried: Tried) -> None:
    """The query, the columns side by side, and how many of the results are unsafe."""
    from ..report import Line

    what = "captions" if tried.searched.kind == "text" else "images"
    searched = f"{len(tried.searched.items)} {what} of {tried.searched.name}"
    show_lines([Line("QUERY", tried.query), Line("SEARCHED", searched)])
    click.echo("")
    _columns(tried)
    if tried.told:
        counts = (f"{name} {tried.unsafe(name)} of {len(hits)}" for name, hits in tried.columns.items())
        click.echo("")
        show_lines([Line("UNSAFE", f"{' · '.join(counts)}  ({UNSAFE} marks an unsafe result)")])


def _columns(tried: Tried) -> None:
    """The results in columns, 80 wide; `rich` heeds NO_COLOR."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, width=min(WIDTH, console.width))
    table.add_column("", width=len(str(tried.most)), justify="right", no_wrap=True)
    for column, name in tried.names.items():
        table.add_column(Text(column), width=7, no_wrap=True)
        table.add_column(Text(clean(name)), ratio=1, overflow="fold")
    for place in range(tried.most):
        cells = (cell for hits in tried.columns.values() for cell in _cells(hits[place]))
        table.add_row(str(place + 1), *(Text(text, style=style) for text, style in cells))
    with console.capture() as printed:
        console.print(table)
    click.echo(terminal("\n".join(line.rstrip() for line in printed.get().splitlines())))


def _cells(hit: Hit) -> list[tuple[str, str]]:
    """A result's mark and cosine, and what it is, each with its style."""
    unsafe, what = hit.item.side == "unsafe", clean(hit.item.caption or hit.item.name)
    style = "red" if unsafe else ""
    shown = what if len(what) <= LONGEST else f"{what[: LONGEST - 1]}…"
    return [(f"{UNSAFE if unsafe else ' '} {hit.similarity:.2f}", style), (shown, style)]
