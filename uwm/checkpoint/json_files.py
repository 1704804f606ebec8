"""JSON files beside weights: configs, indices, manifests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..schema import Check, demand

LARGEST_JSON = 256 << 20  # bytes; an index of shards has a few


def stated(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty where there is none that can be read."""
    try:
        found = read_json(path)
    except (BadInput, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def read_json(path: Path) -> Any:
    """A JSON file's content. Raises BadInput."""
    if not path.is_file():
        raise BadInput(f"{path.parent}: no {path.name} in this folder")
    try:
        return json.loads(read_text(path, LARGEST_JSON))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not valid JSON ({error})") from None


def read_text(path: Path, largest: int, what: str = "") -> str:
    """The text of a regular file of at most so many bytes. Raises BadInput, also for pipes, devices and folders."""
    if not path.exists():
        raise BadInput(f"{what}{path}: no such file")
    if not path.is_file():
        raise BadInput(f"{what}{path}: no regular file; write the text to a file first")
    with path.open("rb") as stream:
        data = stream.read(largest + 1)
    if len(data) > largest:
        raise BadInput(f"{what}{path}: more than {largest >> 20} MB, which is no such file; is it the right one?")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise BadInput(f"{what}{path}: not UTF-8 at byte {error.start}") from None


def checked_json(path: Path, check: Check, remedy: str) -> Any:
    """A JSON file's content as a schema demands it. Raises BadInput with file, key, what was expected and found."""
    content = read_json(path)
    demand(path, check, content, remedy)
    return content
