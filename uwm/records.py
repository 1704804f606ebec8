"""Our own safetensors files (scores, patches): tensors and one JSON description with kind and format version."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from .checkpoint.dtypes import DTYPES, Bits
from .checkpoint.header import read_header
from .errors import BadInput
from .outputs import put_file, real

if TYPE_CHECKING:
    import torch

FORMAT = 1
FORMATS = {"patch": (2, 1)}  # kind -> formats that are read, the one that is written first; of other kinds FORMAT
KEY = "uwm"  # a single metadata key: with more, safetensors writes them in random order


def content(kind: str, tensors: Mapping[str, torch.Tensor | Bits], about: Mapping[str, Any]) -> bytes:
    """A record as the bytes of its file; equal content gives equal bytes."""
    text = json.dumps({"kind": kind, "format": FORMATS.get(kind, (FORMAT,))[0], **about}, sort_keys=True)
    return _serialised({name: Bits.of(tensor) for name, tensor in tensors.items()}, {KEY: text})


def write(path: Path, kind: str, tensors: Mapping[str, torch.Tensor | Bits], about: Mapping[str, Any]) -> None:
    """Write a record into a folder of ours, atomically. Raises ResourceFault."""
    put_file(path, content(kind, tensors, about))


def save(path: Path, kind: str, data: bytes) -> None:
    """Write a record's bytes where a caller says, atomically, over nothing but a record of its kind.

    Raises:
        BadInput: Something else is there. ResourceFault: The disk failed.
    """
    place = real(path)
    if place.is_file() and not is_record(kind, place):
        raise BadInput(f"{path}: exists and holds no {kind} that uwm wrote, so it is not replaced; choose another file")
    put_file(place, data)


def is_record(kind: str, path: Path) -> bool:
    """Whether a file is a record of a kind, which is our mark for files of this sort."""
    return (describe(path) or {}).get("kind") == kind


def _serialised(stored: Mapping[str, Bits], metadata: dict[str, str]) -> bytes:
    """A safetensors file; torch is only needed for what NumPy has no type for."""
    try:
        arrays = {name: bits.array.view(bits.dtype.name) for name, bits in stored.items()}
    except TypeError:
        from safetensors.torch import save

        return save({name: bits.torch() for name, bits in stored.items()}, metadata)
    from safetensors.numpy import save as save_arrays

    return save_arrays(arrays, metadata)


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
    stored, about = read_bits(path, kind)
    return {name: bits.torch() for name, bits in stored.items()}, about


def read_bits(path: Path, kind: str) -> tuple[dict[str, Bits], dict[str, Any]]:
    """The same without torch: tensors as bit patterns. Raises as `read`."""
    about = describe(path)
    if about is None:
        raise BadInput(f"{path}: not a file that uwm wrote; expected {kind}")
    if about.get("kind") != kind:
        raise BadInput(f"{path}: holds {about.get('kind')}, expected {kind}")
    if (known := FORMATS.get(kind, (FORMAT,))) and about.get("format") not in known:
        reads = " and ".join(map(str, sorted(known)))
        raise BadInput(f"{path}: format {about.get('format')}, this uwm reads {reads}; update uwm")
    stored = {}
    with path.open("rb") as stream:
        header, entries = read_header(stream, path.stat().st_size, str(path))
        for name, entry in entries.items():
            dtype, (begin, end) = DTYPES[entry["dtype"]], entry["data_offsets"]
            stream.seek(len(header) + begin)
            raw = np.fromfile(stream, np.uint8, end - begin)
            stored[name] = Bits(dtype, raw.view(dtype.bits).reshape(entry["shape"]))
    return stored, about


def describe(path: Path) -> dict[str, Any] | None:
    """The description of a record, or None when the file is no record of ours."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        with safe_open(str(path), "np") as file:
            text = (file.metadata() or {}).get(KEY)
        about = None if text is None else json.loads(text)
    except (SafetensorError, ValueError, RecursionError):
        return None
    return about if isinstance(about, dict) else None
