"""Our own safetensors files (scores, patches): tensors and one JSON description with kind and format version."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from .checkpoint.dtypes import DTYPES, Bits
from .checkpoint.header import metadata_of, read_header
from .errors import BadInput, InvalidResult
from .escaping import clean
from .outputs import put_file, real
from .schema import PLAIN, Check, Forms, Unexpected, check_tensors, demand, strict_json

if TYPE_CHECKING:
    import torch

FORMAT = 1
FORMATS = {"patch": (2, 1)}  # kind -> formats that are read, the one that is written first; of other kinds FORMAT
KEY = "uwm"  # a single metadata key: with more, safetensors writes them in random order
ANEW = "make it anew"


@dataclass(frozen=True)
class Form:
    """What a record of a kind must hold.

    Attributes:
        about: Of its description, kind and format included.
        tensors: From a description that passed, the tensors that must be there and those that may be.
        remedy: What to do where it is damaged.
    """

    about: Check
    tensors: Callable[[dict[str, Any]], tuple[Forms, Forms]]
    remedy: str = ANEW


def content(kind: str, tensors: Mapping[str, torch.Tensor | Bits], about: Mapping[str, Any]) -> bytes:
    """A record as the bytes of its file; equal content gives equal bytes. Raises InvalidResult for NaN in `about`."""
    described = {"kind": kind, "format": FORMATS.get(kind, (FORMAT,))[0], **about}
    try:
        text = json.dumps(described, sort_keys=True, allow_nan=False)
    except ValueError as error:
        raise InvalidResult(f"the {kind} cannot be described: {error}") from None
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
    r"""JSON for people: indented, with lists of numbers on one line; bytes of names that are no text as ``\udcff``."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    text = re.sub(r"[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)
    # a line break is never inside of a string, so only lists without strings match
    return re.sub(r'\[\n[^\[\]{}"]*\]', lambda found: "[" + " ".join(found[0][1:-1].split()) + "]", text)


def read(path: Path, kind: str, form: Form | None = None) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and description of a record.

    Args:
        path: The file.
        kind: What it must be.
        form: What a record of this kind holds; None where nothing of it is believed.

    Raises:
        BadInput: Not there, not ours, another kind, written by a newer format, or not of the form; the text names the
            key or tensor, what was expected and what was found.
    """
    stored, about = read_bits(path, kind, form)
    return {name: bits.torch() for name, bits in stored.items()}, about


def read_bits(path: Path, kind: str, form: Form | None = None) -> tuple[dict[str, Bits], dict[str, Any]]:
    """The same without torch: tensors as bit patterns. Raises as `read`, before any tensor is read."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    with path.open("rb") as stream:
        try:
            header, entries = read_header(stream, os.fstat(stream.fileno()).st_size, str(path))
        except BadInput:
            header, entries = b"", {}
        about = _description(header)
        _check_kind(path, kind, about)
        assert about is not None
        if form is not None:
            _check_form(path, form, about, entries)
        return {name: _tensor(stream, path, len(header), name, entry) for name, entry in entries.items()}, about


def _check_kind(path: Path, kind: str, about: Mapping[str, Any] | None) -> None:
    if about is None:
        raise BadInput(f"{path}: not a file that uwm wrote; expected {kind}")
    if about.get("kind") != kind:
        raise BadInput(f"{path}: holds {clean(str(about.get('kind')))[:60]}, expected {kind}")
    known, found = FORMATS.get(kind, (FORMAT,)), about.get("format")
    if type(found) is not int or found not in known:
        reads = " and ".join(map(str, sorted(known)))
        raise BadInput(f"{path}: format {clean(str(found))[:60]}, this uwm reads {reads}; update uwm")


def _check_form(path: Path, form: Form, about: dict[str, Any], entries: Mapping[str, Any]) -> None:
    demand(path, PLAIN, about, form.remedy)
    demand(path, form.about, about, form.remedy)
    found = {name: (DTYPES[e["dtype"]].name, tuple(e["shape"])) for name, e in entries.items()}
    try:
        check_tensors(*form.tensors(about), found)
    except Unexpected as wrong:
        raise BadInput(f"{path}: damaged: {wrong}; {form.remedy}") from None


def _tensor(stream: BinaryIO, path: Path, start: int, name: str, entry: Mapping[str, Any]) -> Bits:
    dtype, (begin, end) = DTYPES[entry["dtype"]], entry["data_offsets"]
    stream.seek(start + begin)
    raw = np.fromfile(stream, np.uint8, end - begin)
    if len(raw) != end - begin:
        raise BadInput(f"{path}: cut off inside {name!r} while it was read")
    return Bits.stored(dtype, raw, entry["shape"])


def describe(path: Path) -> dict[str, Any] | None:
    """The description of a record, or None when the file is no record of ours."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        with path.open("rb") as stream:
            return _description(read_header(stream, os.fstat(stream.fileno()).st_size, str(path))[0])
    except BadInput:
        return None


def _description(header: bytes) -> dict[str, Any] | None:
    """What a header, length field included, says of a record; None where it is none."""
    try:
        text = metadata_of(header).get(KEY)
        about = None if text is None else strict_json(text)
    except (ValueError, RecursionError):
        return None
    return about if isinstance(about, dict) else None
