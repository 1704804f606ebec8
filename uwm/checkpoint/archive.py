"""Torch's own files, `torch.save` (zip and legacy) and TorchScript: tensors by name, read one by one, nothing run.

A zip holds ``NAME/data.pkl`` and one stored entry a storage, ``NAME/data/KEY``. A legacy file is a row of pickles
(magic number, version, system, content, storage keys), then each storage's length and bytes. TorchScript's ``code/`` is
not opened.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ..errors import BadInput, Refused
from .pickles import Made, Name, Persistent, read_pickle

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
MAX_PICKLE = 256 << 20  # bytes
DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "UntypedStorage": torch.uint8,
    "Float8_e4m3fnStorage": torch.float8_e4m3fn, "Float8_e5m2Storage": torch.float8_e5m2,
}  # fmt: skip
REBUILDS = {"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"}
PARAMETERS = {"_rebuild_parameter", "_rebuild_parameter_with_state", "Parameter"}
UNFIT = {"_rebuild_sparse_tensor": "sparse", "_rebuild_qtensor": "quantised", "_rebuild_meta_tensor_no_storage": "meta"}


@dataclass(frozen=True)
class Storage:
    """A run of bytes in a file; `crc` where the file tells it."""

    path: Path
    begin: int
    nbytes: int
    crc: int | None


@dataclass(frozen=True)
class StoredTensor:
    """A view into a storage, not read yet."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    conjugated: bool = False
    negated: bool = False

    def read(self) -> torch.Tensor:
        """The values, contiguous and no larger than the view. Raises BadInput where the file is damaged."""
        size, whole = self.dtype.itemsize, self.storage.nbytes
        span = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        if not math.prod(self.shape):
            return torch.empty(self.shape, dtype=self.dtype)
        with self.storage.path.open("rb") as stream:
            stream.seek(self.storage.begin + self.offset * size)
            raw = np.fromfile(stream, dtype=np.uint8, count=span * size)
        if len(raw) != span * size:
            raise BadInput(f"{self.storage.path}: cut off while it was read")
        if self.storage.crc is not None and len(raw) == whole and zlib.crc32(raw.data) != self.storage.crc:
            raise BadInput(f"{self.storage.path}: damaged, a tensor's checksum does not fit; download it again")
        flat = torch.from_numpy(raw).view(self.dtype)
        tensor = torch.as_strided(flat, self.shape, self.stride).contiguous()
        tensor = tensor.conj().resolve_conj() if self.conjugated else tensor
        return -tensor if self.negated else tensor


@dataclass(frozen=True)
class Unfit:
    """A tensor that no safetensors file can hold, by its kind."""

    kind: str


@dataclass(frozen=True)
class Archive:
    """A file's content with its tensors in place, and whether it is TorchScript."""

    content: Any
    scripted: bool


def open_archive(path: Path) -> Archive:
    """Read everything of a torch file but the tensors' values.

    Raises:
        Refused: A pickle in it asks for more than tensors. BadInput: Damaged, compressed, or no torch file.
    """
    try:
        with path.open("rb") as stream:
            if stream.read(2) == b"PK":
                return _open_zip(path, stream)
            stream.seek(0)
            return Archive(_open_legacy(path, stream), False)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, struct.error, EOFError, zlib.error) as error:
        raise BadInput(f"{path}: damaged torch file ({error}); download it again") from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, UnicodeError) as error:
        raise BadInput(f"{path}: damaged torch file ({error!r}); download it again") from None


def _open_zip(path: Path, stream: BinaryIO) -> Archive:
    with zipfile.ZipFile(stream) as archive:
        entries = _entries(path, stream, archive)
        found = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(found) != 1:
            raise BadInput(f"{path}: a zip file, but no torch file (no single data.pkl); expected torch.save's output")
        top = found[0].removesuffix("data.pkl")
        for name in entries:  # whatever else is pickled is held to the same list; code/ is never opened
            if name.endswith(".pkl") and not name.startswith(f"{top}code/") and name != found[0]:
                read_pickle(BytesIO(_read(archive, name, path)), f"{path}: {name}")
        if f"{top}byteorder" in entries and archive.read(f"{top}byteorder") != b"little":
            raise BadInput(f"{path}: stored in big-endian order; re-save it on a little-endian machine")
        pickled = BytesIO(_read(archive, found[0], path))
        content = read_pickle(pickled, str(path))
        if pickled.read(1):
            raise Refused(
                f"{path}: refused, bytes follow the pickle's end; re-save only its state_dict with torch.save"
            )
    storages = {n.removeprefix(f"{top}data/"): s for n, s in entries.items() if n.startswith(f"{top}data/")}
    scripted = any(name.startswith(f"{top}code/") for name in entries)
    return Archive(_Builder(path, storages).build(content), scripted)


def _read(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    if archive.getinfo(name).file_size > MAX_PICKLE:
        raise BadInput(f"{path}: {name} has more than {MAX_PICKLE >> 20} MB; re-save only its state_dict")
    return archive.read(name)


def _entries(path: Path, stream: BinaryIO, archive: zipfile.ZipFile) -> dict[str, Storage]:
    """Every entry's place in the file, each proved by its own local header; one view of the file or none."""
    entries: dict[str, Storage] = {}
    position = 0
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        stream.seek(max(0, info.header_offset))
        head = struct.unpack("<4s5H3I2H", stream.read(30))
        name = stream.read(head[9])
        begin = info.header_offset + 30 + head[9] + head[10]
        plain = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
        stored = plain or "/code/" in info.filename
        twice = info.filename in entries or info.header_offset < position
        if head[0] != b"PK\3\4" or name != info.orig_filename.encode() or twice or info.flag_bits & 1 or not stored:
            raise BadInput(f"{path}: entry {info.filename!r} is doubled, compressed, encrypted or damaged; re-save it")
        position = begin + info.compress_size
        entries[info.filename] = Storage(path, begin, info.file_size, info.CRC)
    if min((info.header_offset for info in archive.infolist()), default=1) != 0 or position > archive.start_dir:
        raise BadInput(f"{path}: the zip's entries do not fill the file as they should; download it again")
    return entries


def _open_legacy(path: Path, stream: BinaryIO) -> Any:
    if read_pickle(stream, str(path)) != LEGACY_MAGIC:
        raise BadInput(f"{path}: a pickle, but holds no state dict that torch.save wrote; re-save it with torch.save")
    read_pickle(stream, str(path))  # protocol version
    system = read_pickle(stream, str(path))
    if not system.get("little_endian", True):
        raise BadInput(f"{path}: stored in big-endian order; re-save it on a little-endian machine")
    content, keys = read_pickle(stream, str(path)), read_pickle(stream, str(path))
    sizes = dict(_legacy_storages(content))
    storages, size = {}, path.stat().st_size
    for key in keys:
        count = struct.unpack("<q", stream.read(8))[0]
        nbytes = count * sizes[key]
        if count < 0 or stream.tell() + nbytes > size:
            raise BadInput(f"{path}: cut off inside its storages; download it again")
        storages[key] = Storage(path, stream.tell(), nbytes, None)
        stream.seek(nbytes, 1)
    return _Builder(path, storages).build(content)


def _legacy_storages(content: Any) -> Iterator[tuple[str, int]]:
    """Key and bytes an element of every storage that a pickle refers to."""
    for value in _walk(content):
        if isinstance(value, Persistent):
            _, kind, key, *_ = value.identity
            yield key, _dtype(kind).itemsize


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


def _dtype(kind: Any) -> torch.dtype:
    name = kind.name.split(" ")[-1] if isinstance(kind, Name) else repr(kind)
    if name not in DTYPES:
        raise ValueError(f"unknown storage {name}")
    return DTYPES[name]


class _Builder:
    """Puts tensors in the place of the calls that would make them."""

    def __init__(self, path: Path, storages: Mapping[str, Storage]) -> None:
        self.path, self.storages = path, storages

    def build(self, value: Any, depth: int = 0) -> Any:
        """Dictionaries stay dictionaries, tensors become `StoredTensor`, all else stays what it is."""
        if depth > 64:
            return None  # no state dict lies so deep
        if isinstance(value, Made) and value.name.startswith("collections "):
            pairs = value.arguments[0] if value.arguments and isinstance(value.arguments[0], list) else []
            value = {k: v for k, v in pairs if isinstance(k, str)} | value.items
        if isinstance(value, dict):
            return {key: self.build(inner, depth + 1) for key, inner in value.items()}
        if isinstance(value, Made) and value.name.startswith("__torch__"):
            state = value.state if isinstance(value.state, dict) else {}
            return Made(value.name, (), {k: self.build(v, depth + 1) for k, v in state.items()})
        if isinstance(value, Made):
            return self._made(value, depth)
        return value

    def _made(self, made: Made, depth: int) -> Any:
        function = made.name.split(" ")[-1]
        if function in PARAMETERS and made.arguments:
            return self.build(made.arguments[0], depth + 1)
        if function in UNFIT:
            return Unfit(UNFIT[function])
        return self._tensor(function, made.arguments) if function in REBUILDS else made

    def _tensor(self, function: str, arguments: tuple) -> StoredTensor | Unfit:
        reference, offset, shape, stride, *rest = arguments
        kind, key, *_ = reference.identity[1:]
        if len(reference.identity) > 5 and reference.identity[5] is not None:
            return Unfit("a view of a view")
        dtype, flags = _dtype(kind), rest[-1] if rest else None
        if function == "_rebuild_tensor_v3":
            return Unfit(rest[2].name.replace(" ", ".") if len(rest) > 2 and isinstance(rest[2], Name) else "odd dtype")
        storage, shape, stride = self.storages[key], _sizes(shape), _sizes(stride)
        span = 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) if math.prod(shape) else 0
        if type(offset) is not int or offset < 0 or (offset + span) * dtype.itemsize > storage.nbytes:
            raise BadInput(
                f"{self.path}: a tensor of {list(shape)} does not fit into its {storage.nbytes} bytes; damaged"
            )
        flags = flags if isinstance(flags, dict) else {}
        return StoredTensor(storage, dtype, offset, shape, stride, bool(flags.get("conj")), bool(flags.get("neg")))


def _sizes(value: Any) -> tuple[int, ...]:
    if isinstance(value, Made):  # torch.Size
        value = value.arguments[0]
    if not isinstance(value, tuple) or not all(type(n) is int and 0 <= n < 2**62 for n in value):
        raise ValueError(f"sizes {value!r}")
    return value
