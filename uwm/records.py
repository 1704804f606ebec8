"""Our own safetensors files (scores, patches): tensors and one JSON description with kind and format version."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .checkpoint.folder import write_file
from .errors import BadInput

FORMAT = 1
KEY = "uwm"  # a single metadata key: with more, safetensors writes them in random order


def write(path: Path, kind: str, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
    """Write a record atomically; equal content gives equal bytes."""
    text = json.dumps({"kind": kind, "format": FORMAT, **about}, sort_keys=True)
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata={KEY: text})
    write_file(path, data)


def to_json(value: Any) -> str:
    """JSON for people: indented, with lists of numbers on one line."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    # a line break is never inside of a string, so only lists without strings match
    return re.sub(r'\[\n[^\[\]{}"]*\]', lambda found: "[" + " ".join(found[0][1:-1].split()) + "]", text)


def read(path: Path, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and description of a record.

    Raises:
        BadInput: Not there, not ours, another kind, or written by a newer format.
    """
    about = describe(path)
    if about is None:
        raise BadInput(f"{path}: not a file that uwm wrote; expected {kind}")
    if about.get("kind") != kind:
        raise BadInput(f"{path}: holds {about.get('kind')}, expected {kind}")
    if about.get("format") != FORMAT:
        raise BadInput(f"{path}: format {about.get('format')}, this uwm reads {FORMAT}; update uwm")
    with safe_open(str(path), "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118 (no mapping)


def describe(path: Path) -> dict[str, Any] | None:
    """The description of a record, or None when the file is no record of ours."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        with safe_open(str(path), "pt") as file:
            text = (file.metadata() or {}).get(KEY)
        about = None if text is None else json.loads(text)
    except (SafetensorError, ValueError, RecursionError):
        return None
    return about if isinstance(about, dict) else None
