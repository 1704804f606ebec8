"""Where flags come from beside the command line: a TOML file, and UWM_ variables."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from ..checkpoint.json_files import read_text
from ..errors import BadInput
from ..schema import shown

PREFIX = "UWM_"
OTHER_VARIABLES = ("UWM_EMBEDDINGS_DIR",)  # read elsewhere than by a flag
LARGEST_FILE = 1 << 20  # bytes


def read_toml(path: Path) -> dict[str, Any]:
    """The keys of a TOML file. Raises BadInput: no regular file, too large, or no TOML."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    text = read_text(path, LARGEST_FILE, "--config ")
    try:
        given = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"--config {path}: not valid TOML ({error})") from None
    return given


def _is_plain(value: Any) -> bool:
    if isinstance(value, bool | str):
        return "\0" not in str(value)
    return isinstance(value, int | float) and math.isfinite(float(value) if abs(value) < 2**64 else math.inf)


def check_values(
    path: Path, given: Mapping[str, Any], options: Mapping[str, click.Option], taking: Collection[str]
) -> None:
    """Refuse what is no text, number, true or false, nor a list of these for a flag that takes several.

    Args:
        path: The file.
        given: Flag -> value.
        options: Flag -> the verb's option.
        taking: The flags that take several.

    Raises:
        BadInput: The text names the key, what was expected and what was found.
    """
    for key, value in given.items():
        if not all(map(_is_plain, value if isinstance(value, list) else [value])):
            raise BadInput(
                f"--config {path}: {key}: expected a text, a number, true or false, or a list of these, found "
                f"{shown(value)}"
            )
    for key, value in given.items():
        if isinstance(value, list) and key not in taking:
            raise BadInput(f"--config {path}: {key}: expected one value, found the list {shown(value)}")
        option, plain = options[key], not isinstance(value, str)
        if plain and ((option.is_flag and not isinstance(value, bool)) or isinstance(option.type, click.Path)):
            kind = "true or false" if option.is_flag else "a text"
            raise BadInput(f"--config {path}: {key}: expected {kind}, found {shown(value)}")


def unknown_variables(environment: Iterable[str], known: Collection[str]) -> Iterator[str]:
    """A line for every variable with our prefix that no flag of any verb reads, with the nearest name that one does."""
    names = sorted({*known, *OTHER_VARIABLES})
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in names:
            close = get_close_matches(name, names, 1, 0.6)
            yield f"{name}: no flag is set by this variable" + (f"; did you mean {close[0]}?" if close else "")


def variables(group: click.Group) -> set[str]:
    """The variables that the flags of all verbs read."""
    options = (option for verb in group.commands.values() for option in verb.params)
    return {option.envvar for option in options if isinstance(option.envvar, str)}
