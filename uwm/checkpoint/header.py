"""The safetensors header, checked before anything is believed.

The format: eight bytes of little-endian header length, a JSON object {name: {dtype, shape, data_offsets}},
then the tensors' bytes without hole or overlap (https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable
from typing import Any, BinaryIO

from ..errors import BadInput
from .dtypes import DTYPES, NAMES, dtype_of

MAX_HEADER = 100_000_000  # bytes, the format's own limit
MAX_MARKS = {b"{": 250_000, b"[": 500_000, b",": 2_000_000}  # in a header: of objects, of lists, of all values
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_header(stream: BinaryIO, size: int, where: str) -> tuple[bytes, dict[str, dict[str, Any]]]:
    """Read and check a header.

    Args:
        stream: The file, at its start; left at the first tensor's byte.
        size: Bytes in the whole file.
        where: The file's name for messages.

    Returns:
        The header's own bytes (length field included) and {name: {dtype, shape, data_offsets}} by offset.

    Raises:
        BadInput: Truncated, malformed, duplicate keys, or offsets that do not fit.
    """
    start = stream.read(8)
    if len(start) < 8:
        raise BadInput(f"{where}: too short for a safetensors file ({size} bytes); download it again")
    length = struct.unpack("<Q", start)[0]
    if length > min(MAX_HEADER, size - 8):
        if start.lstrip()[:1] in (b"<", b"{") or start.startswith(b"version "):
            kind = {b"<": "an HTML or XML page", b"{": "a JSON file"}.get(start.lstrip()[:1], "a Git-LFS pointer")
            raise BadInput(f"{where}: this is {kind}, not weights; download the file itself")
        raise BadInput(
            f"{where}: no safetensors file, or cut off: it promises a header of {length} bytes and holds {size} in all"
        )
    header = stream.read(length)
    entries = _parse(header, where)
    _check_metadata(entries.pop("__metadata__", None), where)
    if not entries:
        raise BadInput(f"{where}: holds no tensors")
    for name, entry in entries.items():
        _check_entry(name, entry, where)
    if b"\\u" in header and _SURROGATE.search(json.dumps([*entries.values()], ensure_ascii=False)):
        raise BadInput(f"{where}: half of a surrogate pair in the header; save the file again with safetensors")
    ordered = dict(sorted(entries.items(), key=lambda item: item[1]["data_offsets"]))
    _check_cover(ordered, size - 8 - length, where)
    return start + header, ordered


def make_header(tensors: Iterable[tuple[str, Any, tuple[int, ...]]]) -> bytes:
    """The header, with ``format: pt``, of a file of these tensors: name, type as for `dtype_of`, shape."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, kind, shape in tensors:
        dtype = dtype_of(kind)
        begin, end = end, end + dtype.nbytes(shape)
        entries[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def metadata_of(header: bytes) -> dict[str, str]:
    """The texts under ``__metadata__`` of a header from `read_header`; nothing of one without them."""
    return json.loads(header[8:]).get("__metadata__") or {} if b"__metadata__" in header else {}


def rewritten(header: bytes, wrapper: str = "", marked: bool = False) -> bytes:
    """A header with other words and the same tensors.

    Args:
        header: From `read_header`, length field included.
        wrapper: What to take away from the start of every tensor's name.
        marked: Say ``format: pt``, which transformers before 5 demands, where no format is said.
    """
    entries = json.loads(header[8:])
    metadata = entries.pop("__metadata__", None) or {}
    marked = marked and "format" not in metadata
    if not wrapper and not marked:
        return header  # the very bytes
    metadata |= {"format": "pt"} if marked else {}
    named = {name.removeprefix(wrapper): entry for name, entry in entries.items()}
    text = json.dumps(({"__metadata__": metadata} if metadata else {}) | named, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _parse(header: bytes, where: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise BadInput(f"{where}: duplicate key {twice!r} in the header")
        return result

    for mark, most in MAX_MARKS.items():
        if (count := header.count(mark)) > most:  # before they take memory and time
            raise BadInput(
                f"{where}: the safetensors header has {count} times {mark.decode()!r}, more than any model ({most})"
            )
    try:
        text = header.decode("utf-8")  # bytes: UTF-16 would pass too
        parsed = json.loads(text, object_pairs_hook=unique, parse_int=_natural)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where}: the safetensors header is not valid JSON ({error}); download it again") from None
    if not isinstance(parsed, dict):
        raise BadInput(f"{where}: the safetensors header is no JSON object")
    return parsed


def _natural(text: str) -> int:
    """A whole number; -0, which the library takes for a fraction, is none. Raises ValueError."""
    if text == "-0":
        raise ValueError("-0 where a whole number stands")
    return int(text)


def _check_metadata(metadata: Any, where: str) -> None:
    if metadata is None:
        return
    texts = [*metadata, *metadata.values()] if isinstance(metadata, dict) else [None]
    if not all(isinstance(text, str) and not _SURROGATE.search(text) for text in texts):
        raise BadInput(f"{where}: __metadata__ in the header is no object of texts")


def valid_name(name: str) -> bool:
    """Whether a tensor may be called so: not empty, no NUL, no half of a character."""
    return bool(name) and "\0" not in name and not _SURROGATE.search(name)


def _check_entry(name: str, entry: Any, where: str) -> None:
    if not valid_name(name):
        raise BadInput(f"{where}: tensor name {name!r} is empty or has characters that no name may have")
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = type(dtype) is str and type(shape) is list
        whole = whole and all(type(n) is int and 0 <= n < 2**62 for n in (*shape, begin, end))
        whole = whole and math.prod(n for n in shape if n) < 2**62
    except (TypeError, KeyError, ValueError):
        whole = False
    if not whole:
        raise BadInput(f"{where}: tensor {name!r} lacks a valid dtype, shape or data_offsets")
    if dtype not in DTYPES:
        raise BadInput(f"{where}: tensor {name!r} has dtype {dtype!r}, which uwm does not know")
    if math.prod(shape) % DTYPES[dtype].values:
        raise BadInput(f"{where}: tensor {name!r} of shape {shape} and {dtype} ends within a byte")
    if end - begin != DTYPES[dtype].nbytes(shape):
        raise BadInput(f"{where}: tensor {name!r} of shape {shape} and {dtype} does not fill its {end - begin} bytes")


def _check_cover(entries: dict[str, dict[str, Any]], size: int, where: str) -> None:
    position = 0
    for name, entry in entries.items():
        begin, end = entry["data_offsets"]
        if begin != position:
            raise BadInput(f"{where}: tensor {name!r} starts at byte {begin}, expected {position} (hole or overlap)")
        position = end
    if position != size:
        raise BadInput(f"{where}: expected {position} bytes of tensors, found {size}; download it again")
