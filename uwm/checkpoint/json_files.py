"""JSON files beside weights: configs, indices, manifests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..schema import Check, demand


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
        return json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not valid JSON ({error})") from None


def checked_json(path: Path, check: Check, remedy: str) -> Any:
    """A JSON file's content as a schema demands it. Raises BadInput with file, key, what was expected and found."""
    content = read_json(path)
    demand(path, check, content, remedy)
    return content
