"""What a set's files say, read strictly: JSON without doubtful keys, paths that stay in their folder."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from ..errors import BadInput, Refused

MAX_LINE = 1 << 20  # bytes


def parse_json(raw: bytes, where: str) -> Any:
    """Any JSON value in UTF-8, with or without a byte order mark. Raises BadInput with line and column."""

    def unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [key for key, n in Counter(key for key, _ in items).items() if n > 1]
        if twice:
            raise BadInput(f"{where}: key {twice[0]!r} occurs twice")
        return dict(items)

    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        whole = "file" if b"\n" in raw else "line"
        raise BadInput(f"{where}: not UTF-8 at byte {error.start} of the {whole}") from None
    except json.JSONDecodeError as error:
        place = f"{error.lineno}:{error.colno}" if b"\n" in raw else f"{error.colno}"
        raise BadInput(f"{where}:{place}: not valid JSON ({error.msg})") from None
    except (RecursionError, ValueError):
        raise BadInput(f"{where}: nested too deep, or a number far too long") from None


def parse_object(line: bytes, where: str) -> dict[str, Any]:
    """The JSON object of one line. Raises BadInput when it is too long or something else."""
    if len(line) > MAX_LINE:
        raise BadInput(f"{where}: a line of {len(line)} bytes; the limit is {MAX_LINE}")
    row = parse_json(line, where)
    if not isinstance(row, dict):
        raise BadInput(f"{where}: expected a JSON object, found {type(row).__name__}")
    return row


def short(value: Any) -> str:
    """A value as a message can hold it."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def check_text(value: Any, key: str, where: str) -> str:
    """The value, shown to be a string that can be encoded. Raises BadInput."""
    if not isinstance(value, str):
        raise BadInput(f"{where}: {key!r} is {short(value)}, expected a string")
    if any(0xD800 <= ord(c) <= 0xDFFF for c in value):
        raise BadInput(f"{where}: {key!r} holds half of a surrogate pair")
    return value


def inside(root: Path, name: str, where: str) -> Path:
    """The picture's path, shown to lie in the set's folder and to be a file."""
    if "://" in name:
        raise Refused(f"{where}: {name!r} is a URL; pictures are read from the set's folder only")
    path = inside_if_there(root, name, where)
    if path is None:
        raise BadInput(f"{where}: picture {name!r} does not exist")
    return path


def inside_if_there(root: Path, name: str, where: str) -> Path | None:
    """The picture's path, shown to lie in a folder; None where it is no file."""
    path = root / name
    try:
        if "\0" in name or not path.resolve().is_relative_to(root.resolve()):
            raise Refused(f"{where}: picture {name!r} lies outside of the set's folder")
        return path if path.is_file() else None
    except (OSError, RuntimeError) as error:  # a name too long, a loop of links
        raise BadInput(f"{where}: picture {short(name)} cannot be read ({short(str(error))})") from None
