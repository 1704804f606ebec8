"""Tensors in a torch file: what its pickle says of them, held against the bytes that are there, and read one by one."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BadInput
from .dtypes import BY_NAME, PACKED, Bits, Dtype
from .held import Held
from .pickles import Made, Persistent

if TYPE_CHECKING:
    import torch

MAX_DEPTH = 64  # of modules in modules
MAX_TENSORS, MAX_NAME = 20_000, 200  # in one TorchScript module; letters of an attribute's name
STORAGES = {f"{kind}Storage": BY_NAME[name] for kind, name in {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
    "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "ComplexFloat": "complex64",
    "Untyped": "uint8",
}.items()} | {
    "ComplexDoubleStorage": Dtype("complex128", 16, "complex"), "QInt8Storage": Dtype("qint8", 1, "other"),
    "QUInt8Storage": Dtype("quint8", 1, "other"), "QInt32Storage": Dtype("qint32", 4, "other"),
}  # fmt: skip
NEWER = {  # dtypes without a storage class; torch has none of six bits
    f"torch {name}": dtype for name, dtype in BY_NAME.items() if dtype not in PACKED.values() or dtype.itemsize == 1
}  # fmt: skip
ARGUMENTS = {  # that follow storage, offset, shape and stride, without the flags, which newer ones may have
    "torch._utils _rebuild_tensor": 0, "torch._utils _rebuild_tensor_v2": 2, "torch._utils _rebuild_tensor_v3": 3,
}  # fmt: skip
REBUILDS = {*ARGUMENTS}
WRAPPERS = {
    "torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state", "torch.nn.parameter Parameter",
}  # fmt: skip
UNFIT = {
    "torch._utils _rebuild_sparse_tensor": "sparse", "torch._utils _rebuild_qtensor": "quantised",
    "torch._utils _rebuild_meta_tensor_no_storage": "meta",
}  # fmt: skip


@dataclass(frozen=True)
class Storage:
    """A run of bytes in a file; `crc` where the file tells it."""

    held: Held
    begin: int
    nbytes: int
    crc: int | None

    @property
    def path(self) -> Path:
        """The file's."""
        return self.held.path


@dataclass(frozen=True)
class StoredTensor:
    """A view into a storage, not read yet."""

    storage: Storage
    dtype: Dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    conjugated: bool = False
    negated: bool = False

    @property
    def shape_in_file(self) -> tuple[int, ...]:
        """As a safetensors file says it, which counts values where torch counts items of several."""
        return (*self.shape[:-1], self.shape[-1] * self.dtype.values) if self.dtype.values > 1 else self.shape

    def read(self) -> torch.Tensor:
        """The values as a torch tensor, contiguous and no larger than the view; raises as `bits`."""
        return self.bits().torch()

    def bits(self) -> Bits:
        """The values as they are stored, contiguous. Raises BadInput where the file is damaged."""
        if not math.prod(self.shape):
            return Bits(self.dtype, np.empty(self.shape, self.dtype.bits))
        size, span = self.dtype.itemsize, _span(self.shape, self.stride)
        raw = np.empty(span * size, np.uint8)
        if not self.storage.held.read_all(self.storage.begin + self.offset * size, raw):
            self.storage.held.demand_unchanged()
            raise BadInput(f"{self.storage.path}: cut off while it was read")
        whole = len(raw) == self.storage.nbytes
        if whole and self.storage.crc is not None and zlib.crc32(raw.data) != self.storage.crc:
            raise BadInput(f"{self.storage.path}: damaged, a tensor's checksum does not fit; download it again")
        flat, steps = raw.view(self.dtype.bits), tuple(size * step for step in self.stride)
        values = np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat, self.shape, steps)).reshape(self.shape)
        if self.conjugated:
            values = np.conj(values.view(f"c{size}")).view(self.dtype.bits)
        return Bits(self.dtype, self.dtype.negated(values) if self.negated else values)


@dataclass(frozen=True)
class Unfit:
    """A tensor that no safetensors file can hold, by its kind."""

    kind: str


Tensors = dict[str, StoredTensor | Unfit]


def references(content: Any) -> dict[str, tuple[Dtype, int]]:
    """Every storage that a pickle refers to: key -> its elements' dtype and number. Raises ValueError."""
    found: dict[str, tuple[Dtype, int]] = {}
    for value in _walk(content):
        if isinstance(value, Persistent):
            kind, key, count = _reference(value)
            if found.setdefault(key, (kind, count)) != (kind, count):
                raise ValueError("one storage is referred to as two")
    return found


def _reference(persistent: Any) -> tuple[Dtype, str, int]:
    """dtype, key and elements of a storage."""
    word, kind, key, _, count, *_ = persistent.identity
    name = kind.name.rpartition(" ")[2]
    if word != "storage" or type(key) is not str or type(count) is not int or count < 0 or name not in STORAGES:
        raise ValueError("a reference to something that is no storage")
    return STORAGES[name], key, count


def _walk(content: Any) -> Iterator[Any]:
    """Everything in a pickle's content, each object once, without recursion."""
    seen, waiting = set(), [content]
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, str | bytes | int | float | None):
            continue
        seen.add(id(value))
        yield value
        if isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple):
            waiting.extend(value)
        elif isinstance(value, Made):
            waiting.extend((*value.arguments, value.state, value.items))


def find_state_dicts(content: Any, storages: Mapping[str, Storage]) -> dict[str, Tensors]:
    """Every dictionary of names and tensors, by its dotted place, down to the third level; one object once."""
    seen: set[int] = set()

    def search(value: Any, name: str, depth: int) -> Iterator[tuple[str, Tensors]]:
        if id(value) in seen or not (held := _mapping(value)):
            return
        seen.add(id(value))
        if all(isinstance(key, str) and _is_tensor(inner) for key, inner in held.items()):
            yield name, {key: _tensor(inner, storages) for key, inner in held.items()}
        elif depth < 3:
            for key, inner in held.items():
                if isinstance(key, str):
                    yield from search(inner, f"{name}.{key}" if name else key, depth + 1)

    return dict(search(content, "", 0))


def script_tensors(module: Any, storages: Mapping[str, Storage]) -> Tensors:
    """Parameters and buffers of a TorchScript module, by dotted name; a module held twice counts under both names."""
    known: dict[int, Tensors] = {}

    def collect(module: Made, depth: int) -> Tensors:
        if id(module) in known:
            return known[id(module)]
        found: Tensors = {}
        for name, value in (module.state if isinstance(module.state, dict) else {}).items():
            if _is_tensor(value):
                found[name] = _tensor(value, storages)
            elif _is_script(value):
                found |= {f"{name}.{inner}": tensor for inner, tensor in collect(value, depth + 1).items()}
            if depth > MAX_DEPTH or len(found) > MAX_TENSORS or len(name) > MAX_NAME:
                raise ValueError("more modules in modules than a model has")
        known[id(module)] = found
        return found

    return collect(module, 0) if _is_script(module) else {}


def _is_script(value: Any) -> bool:
    return isinstance(value, Made) and value.name.startswith("__torch__")


def _mapping(value: Any) -> dict[Any, Any]:
    """A dictionary of any class as a plain one; nothing for all else."""
    if isinstance(value, Made) and value.name.startswith("collections "):
        pairs = value.arguments[0] if value.arguments and isinstance(value.arguments[0], list) else []
        value = {pair[0]: pair[1] for pair in pairs if isinstance(pair[0], str)} | value.items
    return value if isinstance(value, dict) else {}


def _unwrapped(value: Any) -> Any:
    """What a parameter or a tensor of another class really is."""
    for _ in range(4):
        if isinstance(value, Made) and value.name in WRAPPERS and value.arguments:
            value = value.arguments[0]
        elif isinstance(value, Made) and value.name == "torch._tensor _rebuild_from_type_v2":
            value = Made(value.arguments[0].name, value.arguments[2])
    return value


def _is_tensor(value: Any) -> bool:
    value = _unwrapped(value)
    return isinstance(value, Made) and (value.name in REBUILDS or value.name in UNFIT)


def _tensor(value: Any, storages: Mapping[str, Storage]) -> StoredTensor | Unfit:
    """A tensor of the pickle in its storage. Raises BadInput where it does not fit, ValueError where it is none."""
    made = _unwrapped(value)
    if made.name in UNFIT:
        return Unfit(UNFIT[made.name])
    reference, offset, shape, stride, *rest = made.arguments
    _check_arguments(made.name, rest)
    (dtype, key, _), rest = _reference(reference), rest[2:]  # without requires_grad and hooks
    if reference.identity[5:] not in ((), (None,)):
        return Unfit("a view of a view")
    if made.name.endswith("_v3"):
        name = rest.pop(0).name
        if name not in NEWER:
            return Unfit(name.replace(" ", "."))
        dtype = NEWER[name]
        if dtype.values > 1 and not shape:
            return Unfit(f"{name.replace(' ', '.')} scalar")
    shape, stride, storage = _sizes(shape), _sizes(stride), storages[key]
    end = offset + (_span(shape, stride) if math.prod(shape) else 0)
    if len(shape) != len(stride) or type(offset) is not int or offset < 0 or end * dtype.itemsize > storage.nbytes:
        raise BadInput(
            f"{storage.path}: a tensor of {list(shape)} does not fit into its {storage.nbytes} bytes; download it again"
        )
    flags = rest[0] if rest and rest[0] is not None else {}
    if not all(flags[flag] is True for flag in ("conj", "neg") if flag in flags):
        raise ValueError("a mark of a tensor that is neither there nor absent")
    conjugated, negated = "conj" in flags, "neg" in flags
    if (conjugated and dtype.kind != "complex") or (negated and dtype.kind not in ("complex", "float")):
        raise ValueError(f"a conjugated or negated tensor of {dtype.name}")
    return StoredTensor(storage, dtype, offset, shape, stride, conjugated, negated)


def _check_arguments(name: str, rest: list[Any]) -> None:
    """What stands behind the stride: requires_grad and hooks, a type in `_v3`, and flags. Raises ValueError."""
    fewest = ARGUMENTS[name]
    if not fewest <= len(rest) <= fewest + (fewest > 0):
        raise ValueError(f"{name} with {4 + len(rest)} arguments")
    if fewest and (type(rest[0]) is not bool or not _is_dictionary(rest[1])):
        raise ValueError("a tensor with requires_grad or hooks that are none")
    flags = rest[-1] if len(rest) > fewest else None
    if flags is not None and not (isinstance(flags, dict) and all(isinstance(flag, str) for flag in flags)):
        raise ValueError("a tensor with flags that are none")


def _is_dictionary(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, Made) and value.name.startswith("collections "))


def _span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Elements from the first to the last of a view."""
    return 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))


def _sizes(value: Any) -> tuple[int, ...]:
    if isinstance(value, Made):  # torch.Size
        value = value.arguments[0]
    good = isinstance(value, tuple) and len(value) <= MAX_DEPTH
    good = good and all(type(n) is int and 0 <= n < 2**62 for n in value)
    if not good or math.prod(n for n in value if n) >= 2**62:
        raise ValueError("a shape or stride that is none")
    return value
