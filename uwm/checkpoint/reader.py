"""An open checkpoint of any spelling, whose tensors are read one by one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BadInput, ResourceFault
from ..layouts import Layout
from ..weights import WeightId, WeightRef
from .dtypes import Bits, Dtype
from .held import Held, Identity
from .tensors import StoredTensor

if TYPE_CHECKING:
    import torch

CHUNK = 1 << 19  # bytes read at once; a few of them stay in the processor's own memory
CASTS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor: where its bytes begin in its file, and how to read them."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    begin: int

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return self.dtype.nbytes(self.shape)


@dataclass(frozen=True)
class WeightsFile:
    """One file of weights as it will be written: its name, header and tensors in the order of their bytes.

    Attributes:
        name: Where it belongs, relative to the checkpoint's folder, with ``/``.
        held: The file it is read from.
        component: What stands before its tensors' names in the checkpoint's keys, ``text_encoder/`` in a pipeline.
        pickled: Where `origin` is a torch file, its tensors by name.
        scripted: Whether that file is a TorchScript archive.
        wrapper: What stood before all of its tensors' names in a safetensors file, and is not written again.
    """

    name: str
    header: bytes
    tensors: tuple[TensorInfo, ...]
    held: Held = field(repr=False)
    component: str = ""
    pickled: Mapping[str, StoredTensor] | None = field(default=None, repr=False)
    scripted: bool = False
    wrapper: str = ""

    @property
    def origin(self) -> Path:
        """The path that was opened."""
        return self.held.path

    def raw(self, info: TensorInfo) -> np.ndarray:
        """A tensor's own bytes, a fresh uint8 array [nbytes]."""
        if self.pickled is not None:
            return self.pickled[info.name].bits().array.reshape(-1).view(np.uint8)
        data = np.empty(info.nbytes, np.uint8)
        self.fill(info.begin, data)
        return data

    def chunks(self, info: TensorInfo, begin: int, end: int) -> Iterator[np.ndarray]:
        """Bytes `begin` to `end` of a tensor, uint8, `CHUNK` at a time; each is good until the next is asked for."""
        if self.pickled is not None:
            whole = self.raw(info)
            yield from (whole[first : min(first + CHUNK, end)] for first in range(begin, end, CHUNK))
            return
        buffer = np.empty(min(CHUNK, end - begin), np.uint8)
        for first in range(begin, end, CHUNK):
            chunk = buffer[: end - first]
            self.fill(info.begin + first, chunk)
            yield chunk

    def fill(self, begin: int, buffer: np.ndarray) -> None:
        """Read a run of the file's bytes. Raises ResourceFault where it changed, BadInput where it ends before."""
        if not self.held.read_all(begin, buffer):
            self.held.demand_unchanged()
            raise BadInput(f"{self.origin}: cut off at byte {begin} while it was read")

    def aliases(self) -> dict[str, list[str]]:
        """Name -> other names of the very same stored values (tied weights)."""
        by_place: dict[StoredTensor, list[str]] = {}
        for name, tensor in (self.pickled or {}).items():
            if math.prod(tensor.shape):
                by_place.setdefault(tensor, []).append(name)
        return {name: [n for n in names if n != name] for names in by_place.values() if names[1:] for name in names}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, opened but not loaded. Keys are tensor names, in a pipeline after their component.

    Attributes:
        path: What was opened, a file or a folder.
        files: Its weight files.
        layout: Which encoders it holds, recognised from the keys.
        tensors: Everything that has a name and where it lives.
        side_files: For a folder, what else belongs to it (config, tokenizer), relative to `path`.
        indices: Name and content of the shard indices to write.
        notes: What a user should know of how it was read, one line each.
        beside: The side files as they were when it was opened: name -> which file, and its times.
    """

    path: Path
    files: tuple[WeightsFile, ...]
    layout: Layout
    tensors: dict[WeightId, WeightRef]
    side_files: tuple[Path, ...] = ()
    indices: tuple[tuple[str, bytes], ...] = ()
    notes: tuple[str, ...] = ()
    beside: Mapping[Path, Identity | None] = field(default_factory=dict, repr=False)

    @cached_property
    def entries(self) -> dict[str, tuple[WeightsFile, TensorInfo]]:
        """Key -> the file and entry of its tensor."""
        return {file.component + info.name: (file, info) for file in self.files for info in file.tensors}

    @cached_property
    def weights(self) -> dict[WeightId, WeightRef]:
        """Of `tensors` the matrices of the blocks' linear layers."""
        return {weight: ref for weight, ref in self.tensors.items() if weight.is_matrix_of_block}

    @cached_property
    def aliases(self) -> dict[str, list[str]]:
        """Key -> other keys that hold the very same stored values."""
        return {
            file.component + name: [file.component + other for other in others]
            for file in self.files
            for name, others in file.aliases().items()
        }

    def file_hashes(self) -> dict[str, str]:
        """sha256 of every weight file, by its place in the folder, or by its own name."""
        base = self.path if self.path.is_dir() else self.path.parent
        return {file.origin.relative_to(base).as_posix(): file.held.sha256() for file in self.files}

    def demand_unchanged(self, hashes: Mapping[str, str] | None = None) -> None:
        """Refuse a checkpoint whose files changed since it was opened.

        Args:
            hashes: sha256 of weight files as they were read just now, by their paths as text.

        Raises:
            ResourceFault: A file of weights, or one beside them, was written to, replaced or removed.
        """
        for file in self.files:
            file.held.demand_unchanged((hashes or {}).get(str(file.origin)))
        for name, before in self.beside.items():
            now = identity_of(self.path / name)
            if now is None or before is None or not now.is_same_content(before):
                raise ResourceFault(
                    f"{self.path / name}: changed while the model was read; nothing was written, so start again"
                )

    def folder_of(self, tower: str) -> Path | None:
        """The folder with a tower's config and weights; None for bare weights."""
        found = self.layout.tower(tower)
        if found is None or not self.path.is_dir():
            return None
        return next(file.origin.parent for key, (file, _) in self.entries.items() if key.startswith(found.prefix))

    def read(self, key: str) -> torch.Tensor:
        """A stored tensor in its own dtype and shape."""
        self._demand_values(key)
        return self.bits(key).torch()

    def bits(self, key: str) -> Bits:
        """The same as bit patterns, for which torch is not needed."""
        file, info = self.entries[key]
        raw = file.raw(info) if info.nbytes else np.empty(0, np.uint8)
        return Bits.stored(info.dtype, raw, info.shape)

    def _demand_values(self, key: str) -> None:
        """Refuse a tensor whose values are smaller than a byte, which are copied only. Raises BadInput."""
        dtype = self.entries[key][1].dtype
        if dtype.values > 1:
            raise BadInput(f"{self.path}: {key} is {dtype.name}, quantised; edit the float checkpoint first")

    def raw_chunks(self, key: str) -> Iterator[np.ndarray]:
        """A stored tensor's bytes, piece by piece; each is good until the next is asked for."""
        file, info = self.entries[key]
        return file.chunks(info, 0, info.nbytes)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All tensors, by their keys."""
        return {name: self.read(name) for name in self.shapes()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors, by their keys."""
        return {key: info.shape for key, (_, info) in self.entries.items()}

    def same(self, key: str, other: str) -> bool:
        """Whether two stored tensors have the same dtype, shape and bytes."""
        (_, info), (_, other_info) = self.entries[key], self.entries[other]
        if (info.dtype, info.shape) != (other_info.dtype, other_info.shape):
            return False
        return all(same_bytes(a, b) for a, b in zip(self.raw_chunks(key), self.raw_chunks(other), strict=True))

    def matrix(self, weight: WeightId) -> torch.Tensor:
        """One named tensor's stored values; a matrix is [out, in], however it is stored."""
        return self.matrix_bits(weight).torch()

    def matrix_bits(self, weight: WeightId) -> Bits:
        """The same as bit patterns."""
        ref = self.tensors[weight]
        self._demand_values(ref.key)
        stored = self.bits(ref.key)
        return Bits(stored.dtype, np.ascontiguousarray(ref.of(stored.array)))

    def info(self, weight: WeightId) -> TensorInfo:
        """One named tensor's own type, shape as for `matrix` and place, row blocks of others left out."""
        ref = self.tensors[weight]
        _, info = self.entries[ref.key]
        if ref.transposed:
            return replace(info, shape=info.shape[::-1])
        total, *others = info.shape or (1,)
        rows = ref.rows(total)
        before = info.dtype.nbytes((rows.start, *others))
        return replace(info, shape=(rows.stop - rows.start, *others), begin=info.begin + before)

    def chunks(self, weight: WeightId) -> Iterator[np.ndarray]:
        """One named tensor's values in row order of `matrix`, piece by piece, as `Dtype.bits`.

        Each piece is valid until the next is asked for.
        """
        ref, info = self.tensors[weight], self.info(weight)
        file, whole = self.entries[ref.key]
        if ref.transposed:
            yield from np.array_split(self.matrix_bits(weight).array.reshape(-1), -(-info.nbytes // CHUNK) or 1)
            return
        begin = info.begin - whole.begin
        for chunk in file.chunks(whole, begin, begin + info.nbytes):
            yield chunk.view(info.dtype.bits)

    def fingerprint(self, weight: WeightId) -> str:
        """sha256 of one named tensor's values, the same in every key layout of the same values and dtype."""
        digest = hashlib.sha256()
        for chunk in self.chunks(weight):
            digest.update(chunk.data)
        return digest.hexdigest()


def matrix_sha256(matrix: torch.Tensor) -> str:
    """sha256 of a tensor's values as little-endian bytes in row order."""
    return hashlib.sha256(Bits.of(matrix).array.data).hexdigest()


def same_bytes(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two byte arrays of one length are equal, compared eight bytes at a time."""
    whole = len(first) // 8 * 8
    return np.array_equal(first[:whole].view(np.int64), second[:whole].view(np.int64)) and np.array_equal(
        first[whole:], second[whole:]
    )


def identity_of(path: Path) -> Identity | None:
    """Which file a side file is, and when it was written; None where it is not there."""
    try:
        return Identity.of(path.stat())
    except OSError:
        return None


def file_sha256(path: Path) -> str:
    """sha256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 23):
            digest.update(chunk)
    return digest.hexdigest()


def cast_sha256(matrix: torch.Tensor) -> dict[str, str]:
    """sha256 of a matrix in each floating dtype that checkpoints are cast to, by the dtype's name."""
    import torch

    return {name: matrix_sha256(matrix.to(getattr(torch, name))) for name in CASTS}
