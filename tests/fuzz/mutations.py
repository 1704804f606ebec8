"""Mutations of a record over its tree: a key goes, a value becomes another, a tensor gets another type or shape.

Everything is drawn from a `random.Random`, which hypothesis or a seed gives.
"""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

import torch

DEEP = 60  # objects in objects: more than any record has, and less than Python's own limit
TYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64,
    torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64,
]  # fmt: skip
NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int64: "I64", torch.int32: "I32",
    torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL", torch.complex64: "C64",
}  # fmt: skip


def odd_value(rng: random.Random) -> Any:
    """A JSON value of any kind, hostile ones included; NaN and infinities are written as Python writes them."""
    numbers = [0, 1, -1, 2, 0.5, -0.0, 2**31, 2**63, 2**64, -(2**63), 10**400, 1e308, -1e308, 5e-324]
    strange = [float("nan"), float("inf"), -float("inf"), None, True, False, [], {}, [[]], {"": 0}, [None], {"a": {}}]
    texts = ["", "a", "0", "vision.0.fc2", "F" * 64, "0" * 64, "x" * 3000, "\ud800", "\x1b[31m", "::error::", "../x"]
    texts += ["float32", "manual_seed", "__class__", "nan", "1e999", "١", "\0", "a\nb"]
    return copy.deepcopy(rng.choice(rng.choice([numbers, strange, texts, [nested(rng)]])))


def nested(rng: random.Random) -> Any:
    """Objects and lists in one another."""
    value: Any = 0
    for _ in range(rng.choice([3, DEEP])):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def mutated_json(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value with one thing changed somewhere in it."""
    value = copy.deepcopy(value)
    places = [*_places(value)]
    if not places:
        return odd_value(rng)
    holder, key = rng.choice(places)
    what = rng.randrange(6)
    if what == 0:
        del holder[key]
    elif what == 1:
        holder[key] = odd_value(rng)
    elif what == 2:
        other, there = rng.choice(places)
        holder[key] = copy.deepcopy(other[there])
    elif what == 3:
        holder[key] = rng.choice([[holder[key]], {"a": holder[key]}, str(holder[key]), [holder[key]] * 2])
    elif isinstance(holder, dict):
        name = rng.choice([f"{key}x", "", "vision.01.fc2", "text.0.fc1", "\ud800", "x" * 500, str(key).upper()])
        holder[name] = holder[key] if what == 4 else holder.pop(key)
    else:
        holder.insert(key, copy.deepcopy(holder[key]) if what == 4 else odd_value(rng))
    return value


def _places(value: Any):
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def mutated_tensors(tensors: dict[str, torch.Tensor], rng: random.Random) -> dict[str, torch.Tensor]:
    """A copy with one tensor gone, renamed, exchanged, or of other type, shape or values."""
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    name = rng.choice(sorted(tensors))
    what = rng.randrange(8)
    if what == 0:
        del tensors[name]
    elif what == 1:
        tensors[rng.choice([f"{name}x", f"{name}:a", "nothing", "../x", "1/a", "adam/a"])] = tensors.pop(name)
    elif what == 2:
        other = rng.choice(sorted(tensors))
        tensors[name], tensors[other] = tensors[other], tensors[name]
    elif what == 3:
        tensors[name] = _of_type(tensors[name], rng.choice(TYPES))
    elif what == 4:
        tensors[name] = _of_shape(tensors[name], rng)
    elif what == 5:
        tensors["more"] = tensors[name].clone()
    else:
        _spoil(tensors[name], rng)
    return tensors


def _of_type(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if tensor.dtype == dtype:
        return tensor
    real = tensor.real if tensor.is_complex() else tensor  # torch warns once of what a cast loses
    return torch.nan_to_num(real.float()).clamp(-1, 100).to(dtype)


def _of_shape(tensor: torch.Tensor, rng: random.Random) -> torch.Tensor:
    shapes = [tensor.reshape(-1), tensor[None], tensor[..., None], tensor.T if tensor.ndim == 2 else tensor[None, None]]
    shapes += [] if not tensor.ndim else [tensor[:0], tensor[:-1], torch.cat([tensor, tensor])]
    return rng.choice(shapes).contiguous()


def _spoil(tensor: torch.Tensor, rng: random.Random) -> None:
    """Put an odd value into one place."""
    flat = tensor.view(-1)
    if len(flat):
        real = tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool
        bounds = [0, 1] if real else [0, torch.iinfo(tensor.dtype).min, torch.iinfo(tensor.dtype).max]
        value = rng.choice([float("nan"), float("inf"), -1.0, 3e38] if tensor.is_floating_point() else bounds)
        flat[rng.randrange(len(flat))] = bool(value) if tensor.dtype == torch.bool else value


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """A copy with a byte changed, put in or cut off."""
    place, what = rng.randrange(len(data) + 1), rng.randrange(3)
    if what == 0:
        return data[:place]
    new = bytes([rng.randrange(256)])
    return data[:place] + new + data[place + (what == 1) :]


def record_bytes(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file, whatever its tensors are called; safetensors itself refuses some names."""
    header: dict[str, Any] = {"__metadata__": metadata}
    body = b""
    for name, tensor in tensors.items():
        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        place = [len(body), len(body) + len(raw)]
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": [*tensor.shape], "data_offsets": place}
        body += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body
