"""Safetensors files: ours must take no file that the library refuses, and read the same tensors from what both take."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import safetensors
import torch
from fuzz.mutations import mutated_bytes, mutated_json, record_bytes
from fuzz.targets import Finding, Target, explained, refusal
from tiny_files import bits, hf_state

from uwm.checkpoint import open_checkpoint
from uwm.checkpoint.dtypes import PACKED
from uwm.checkpoint.header import read_header
from uwm.errors import BadInput, Refused

STRICTER = {
    r"holds no tensors$": "a file without tensors is no model",
    r"duplicate key ": "of two values of one key nobody knows which one counts",
    r"tensor name .* is empty or has characters that no name may have": "names go to terminals and other files",
    r"__metadata__ in the header is no object of texts": "half a character cannot be written again",
    r"has \d+ times '.', more than any model": "bombs of millions of entries",
}
LARGEST = 2**62  # elements: larger sizes, which only an empty tensor can have, no tensor library takes


def targets(root: Path) -> list[Target]:
    """Of the header alone, in memory, and of whole checkpoints on disk."""
    seeds = _seeds()
    model = record_bytes(hf_state(width=2, inner=2, blocks=1), {"format": "pt"})
    path = root / "model.safetensors"
    return [
        Target("safetensors header", 3, lambda rng: mutated(rng.choice(seeds), rng), check_header),
        Target("safetensors model", 1, lambda rng: mutated(model, rng), lambda data: check_model(data, path)),
    ]


def _seeds() -> list[bytes]:
    few = {"a": torch.ones(2, 2), "b": torch.arange(3), "c.weight": torch.zeros(1, 2, dtype=torch.bfloat16)}
    odd = {"empty": torch.ones(0, 2), "one": torch.tensor(1.5), "yes": torch.ones(3, dtype=torch.bool)}
    odd |= {"z": torch.ones(1, dtype=torch.complex64), "é ": torch.ones(2, dtype=torch.float8_e5m2)}
    packed = {"a": _entry("F4", [3, 4], [0, 6]), "b": _entry("F6_E3M2", [4], [6, 9]), "c": _entry("U8", [2], [9, 11])}
    none = _file({"a": _entry("U8", [0], [0, 0])}, b"")
    return [record_bytes(few, {"format": "pt"}), record_bytes(odd, {}), _file(packed, bytes(range(11))), none]


def _entry(dtype: str, shape: list, place: list) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": place}


def _file(header: Any, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + body


# ---------------------------------------------------------------- changes


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A file with its bytes, its header's text, its header's tree or one entry changed."""
    what = rng.random()
    if what < 0.25:
        for _ in range(rng.choice([1, 1, 2, 4])):
            data = mutated_bytes(data, rng)
        return data
    length = int.from_bytes(data[:8], "little")
    text, body = data[8 : 8 + length], data[8 + length :]
    if what < 0.45:
        return _file(_other_text(text, rng), body)
    header = json.loads(text)
    if what < 0.65:
        return _file(mutated_json(header, rng), body)
    for _ in range(rng.choice([1, 1, 2])):
        body = _other_entry(header, body, rng)
    return _file(header, body)


TEXTS: list[tuple[bytes, bytes]] = [
    (b'"a"', b'"\\u0061"'), (b"[", b"[ "), (b"{", b"{\t"), (b"}", b"}\n"), (b"}", b"},"), (b"]", b",]"), (b"2", b"2.0"),
    (b"2", b"2e0"), (b"0", b"-0"), (b"0", b"00"), (b"1", b"true"), (b"1", b"NaN"), (b"1", b"Infinity"),
    (b'"F32"', b'"f32"'), (b'"', b"'"), (b'"dtype"', b'"dtype" '), (b'"pt"', b"null"), (b'"pt"', b'"\\ud800"'),
    (b'"pt"', b'"\\ud83d\\ude00"'), (b"weight", b"weight\\u0000"), (b"weight", b"\x00"), (b"weight", b"\xff"),
    (b"weight", b"\\/"), (b"weight", b"\\x"), (b'"b"', b'"a"'), (b'"shape"', b'"dtype"'), (b'"shape"', b'"more"'),
    (b'"a"', b'"__metadata__"'), (b'"__metadata__"', b'"meta"'), (b"{", b"\xef\xbb\xbf{"), (b"2", b"9" * 400),
    (b"2", b"18446744073709551616"), (b"2", b"18446744073709551614"), (b"{", b"[" * 300), (b"{", b'{"x": {}, '),
    (b'"dtype"', b'"x": [], "dtype"'), (b"}", b"} "), (b"}", b"}\x00"),
]  # fmt: skip


def _other_text(text: bytes, rng: random.Random) -> bytes:
    """The header with some of its text spelt in another way, right or wrong."""
    for _ in range(rng.choice([1, 1, 2])):
        old, new = rng.choice(TEXTS)
        places = text.count(old)
        if not places:
            continue
        parts = text.split(old)
        chosen = rng.randrange(places)
        text = old.join(parts[: chosen + 1]) + new + old.join(parts[chosen + 1 :])
    if rng.random() < 0.05:
        text = text.decode("utf-8", "replace").encode(rng.choice(["utf-16", "utf-32", "utf-8-sig"]))
    return text + b" " * rng.choice([0, 0, 0, 1, 8])


def _other_entry(header: dict[str, Any], body: bytes, rng: random.Random) -> bytes:
    """Change one entry so that it may still fit; the new body."""
    name = rng.choice(list(header))
    entry = header[name]
    if name == "__metadata__":
        header[name] = rng.choice([{}, {"format": "tf"}, {"a": "b" * 50}, {"x": 1}, [], None])
        return body
    what = rng.randrange(6)
    if what == 0:
        entry["dtype"] = rng.choice(["F64", "F32", "F16", "BF16", "I64", "U64", "I32", "U32", "I16", "U16", "I8", "U8",
            "BOOL", "C64", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F4", "F6_E2M3",
            "F6_E3M2"])  # fmt: skip
    elif what == 1:
        entry["shape"] = rng.choice([[*entry["shape"], 1], entry["shape"][::-1], [2**32, 2**32, 0], [], [0], [2**63],
            [*entry["shape"], 2], [2 * size for size in entry["shape"]]])  # fmt: skip
    elif what == 2:
        entry["data_offsets"] = [place + rng.choice([0, 0, 1, -1, 4]) for place in entry["data_offsets"]]
    elif what == 3:
        header[rng.choice(["", "\0", "x" * 300, "\ud800", "../a", "\x1b[31m", "a\nb", "ü"])] = header.pop(name)
    elif what == 4:
        body += rng.randbytes(rng.choice([1, 4, 8]))
    else:
        header[f"{name}x"] = _entry("F32", [1], [len(body), len(body) + 4])
        body += b"\0\0\x80?"
    return body


# ---------------------------------------------------------------- outcomes


def check_header(data: bytes) -> bool:
    """Our header's check against the library's, entry by entry."""
    stream = BytesIO(data)
    ours, why = _either(lambda: read_header(stream, len(data), "x"))
    theirs = _library(lambda: dict(safetensors.deserialize(data)))
    _compare_acceptance(ours is not None, theirs, why)
    if ours is None or isinstance(theirs, str):
        return False
    header, entries = ours
    if entries.keys() != theirs.keys():
        raise Finding(f"other names: {[*entries]} and {[*theirs]}")
    for name, entry in entries.items():
        begin, end = (len(header) + place for place in entry["data_offsets"])
        if data[begin:end] != theirs[name]["data"] or entry["shape"] != theirs[name]["shape"]:
            raise Finding(f"other bytes or another shape of {name!r}")
        if entry["dtype"] != theirs[name]["dtype"]:
            raise Finding(f"another type of {name!r}")
    return True


def check_model(data: bytes, path: Path) -> bool:
    """A checkpoint of ours against `safetensors.safe_open`, tensor by tensor."""
    path.write_bytes(data)
    opened, why = _either(lambda: open_checkpoint(path))
    if opened is None:
        return False  # whether the library takes it is compared above; this may be valid and no model
    packed = {name for name, (_, info) in opened.entries.items() if info.dtype in PACKED.values()}  # by their bytes
    ours = {name: opened.read(name) for name in opened.entries if name not in packed}
    theirs = _library(lambda: _tensors(data, path))
    _compare_acceptance(True, theirs, why)
    if any(opened.bits(name).array.tobytes() != theirs[name] for name in packed & theirs.keys()):
        raise Finding("other bytes of values smaller than one")
    wrapped = [name for name in theirs if name not in ours]
    if wrapped and not all(name.startswith(("module.", "_orig_mod.", "model.")) for name in theirs):
        raise Finding(f"other names: {wrapped[:3]}")
    for name, tensor in ours.items():
        other = theirs.get(name)
        if isinstance(other, torch.Tensor) and (
            other.dtype != tensor.dtype or other.shape != tensor.shape or differ(tensor, other)
        ):
            raise Finding(f"other values of {name!r}")
    return True


def _tensors(data: bytes, path: Path) -> dict[str, torch.Tensor | bytes]:
    """What the library reads; the bytes alone of types that it has no tensors for."""
    with safetensors.safe_open(path, "pt") as file:
        whole = {name: held for name, held in safetensors.deserialize(data) if held["dtype"] in PACKED}
        others = {name: file.get_tensor(name) for name in file.keys() if name not in whole}  # noqa: SIM118
    return others | {name: bytes(held["data"]) for name, held in whole.items()}


def differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of one type and shape have different bits."""
    if one.dtype.is_complex:
        one, other = torch.view_as_real(one.resolve_conj()), torch.view_as_real(other.resolve_conj())
    return not torch.equal(bits(one.resolve_neg()), bits(other.resolve_neg()))


def _either(read: Callable[[], Any]) -> tuple[Any, str]:
    try:
        return read(), ""
    except (BadInput, Refused) as error:
        return None, refusal(error)


def _library(read: Callable[[], Any]) -> Any:
    """What the library reads, or why it does not."""
    try:
        return read()
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError, OverflowError) as error:
        return f"{type(error).__name__}: {error}"


def _compare_acceptance(taken: bool, theirs: Any, why: str) -> None:
    refused = isinstance(theirs, str)
    if taken and refused:
        raise Finding(f"the library refuses what we take: {theirs[:300]}")
    if taken or refused or explained(why, STRICTER):
        return
    if "lacks a valid dtype, shape" not in why or not any(_is_huge(entry["shape"]) for entry in theirs.values()):
        raise Finding(f"we refuse what the library takes: {why[:300]}")


def _is_huge(shape: list[int]) -> bool:
    return max(shape, default=0) >= LARGEST or math.prod(size for size in shape if size) >= LARGEST
