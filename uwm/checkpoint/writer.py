"""Write an edited copy of a checkpoint: same names, dtypes, shapes and order; only the planned entries differ."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import BadInput, InvalidResult, ResourceFault
from ..weights import WeightId, WeightRef
from .header import make_header
from .reader import Checkpoint, TensorInfo, WeightsFile

CHUNK = 1 << 23  # bytes
WRITE = 1 << 17  # bytes, as much as cp writes at once
LazyTensor = tuple[torch.dtype, tuple[int, ...], Callable[[], torch.Tensor]]


@dataclass(frozen=True)
class Edit:
    """What happens to one weight: these flat indices (row order of [out, in]) change.

    A value is multiplied by `alpha`, in its stored dtype; or replaced, where `values` are given.
    """

    indices: torch.Tensor  # [n] int64, sorted
    alpha: float = -1.0
    values: torch.Tensor | None = None  # [n] in the stored dtype

    def apply(self, flat: torch.Tensor) -> torch.Tensor:
        """Change a flat tensor [out · in] in place; −1 only touches the sign bit, −0 and NaN included."""
        old = flat[self.indices]
        if self.values is not None:
            flat[self.indices] = self.values.to(flat.dtype)
        elif self.alpha == -1.0:
            flat[self.indices] = _negated(old)
        else:
            flat[self.indices] = (old.double() * self.alpha).to(flat.dtype)
        return flat


@dataclass(frozen=True)
class Replacement:
    """A whole tensor is replaced by this one, of the same shape, in the stored dtype."""

    tensor: torch.Tensor

    def apply(self, flat: torch.Tensor) -> torch.Tensor:
        """Fill a flat tensor in place."""
        return flat.copy_(self.tensor.reshape(-1))


def _negated(values: torch.Tensor) -> torch.Tensor:
    """−values by the sign bit alone; torch's own negation loses the sign of a bfloat16 NaN."""
    if not values.dtype.is_floating_point:
        return -values
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.dtype.itemsize]
    return (values.view(integers) ^ torch.iinfo(integers).min).view(values.dtype)


def write_edited(
    checkpoint: Checkpoint,
    edits: Mapping[WeightId, Edit],
    folder: Path,
    aliases: Mapping[str, list[str]] | None = None,
    replaced: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, str]:
    """Stream the checkpoint into `folder` with its side files, then read it back and compare with the plan.

    Args:
        checkpoint: The source, left untouched.
        edits: What to change. A tensor that is stored once under several names changes under all of them.
        folder: An existing, empty folder.
        aliases: Tied tensors that the checkpoint itself no longer tells, key -> others.
        replaced: Key -> a new tensor of the same shape, for what is not edited but made anew.

    Returns:
        sha256 of every weight file written, by name.

    Raises:
        BadInput: Two edits of one stored matrix, or tied tensors that differ. ResourceFault: The disk failed.
        InvalidResult: What is on disk is not what was planned.
    """
    plans = _plans(checkpoint, edits, {**checkpoint.aliases, **(aliases or {})})
    plans |= {key: [(WeightRef(key), Replacement(tensor))] for key, tensor in (replaced or {}).items()}
    try:
        for name in checkpoint.side_files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoint.path / name, folder / name)
        if checkpoint.index is not None:
            (folder / checkpoint.index[0]).write_bytes(checkpoint.index[1])
        hashes = {}
        for file in checkpoint.files:
            (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
            hashes[file.name] = _write_file(file, plans, folder / file.name)
        for file in checkpoint.files:
            _verify_file(file, plans, folder / file.name)
    except OSError as error:
        raise ResourceFault(f"{folder}: could not write: {error.strerror or error}") from error
    return hashes


Plan = list[tuple[WeightRef, Edit | Replacement]]  # what happens to which rows of one tensor
Plans = dict[str, Plan]  # by the tensor's key


def _plans(checkpoint: Checkpoint, edits: Mapping[WeightId, Edit], aliases: Mapping[str, list[str]]) -> Plans:
    plans: Plans = {}
    named = {checkpoint.weights[weight].key for weight in edits}
    for weight, edit in edits.items():
        ref = checkpoint.weights[weight]
        plans.setdefault(ref.key, []).append((ref, edit))
    for key in list(plans):
        for other in aliases.get(key, []):
            if other not in checkpoint.entries:
                continue  # another spelling of the same weights
            if not checkpoint.same(key, other):
                raise BadInput(f"{checkpoint.path}: {key} and {other} were one tied matrix and differ now")
            if other in named:
                raise BadInput(
                    f"{checkpoint.path}: {key} and {other} are one tied matrix, which cannot be edited twice; choose "
                    "one of them with --text-layers and --vision-layers"
                )
            plans[other] = plans[key]
    return plans


def _pieces(file: WeightsFile, plans: Plans) -> Iterator[np.ndarray]:
    """The tensors' bytes as they shall be written, in order; a piece is good until the next but one is asked for.

    Edited tensors come whole, and so do those of a torch file; what lies between comes in chunks. All but a torch
    file's go through two buffers, since fresh memory can cost more than the copy.
    """
    edited = [info.nbytes for info in file.tensors if file.component + info.name in plans]
    buffers = itertools.cycle([np.empty(max(CHUNK, *edited, 0), np.uint8) for _ in range(2)])
    with file.origin.open("rb", buffering=0) as stream:
        for plan, infos in _stretches(file, plans):
            if file.pickled is not None:
                yield _edited(infos[0], file.raw(infos[0]), plan)
                continue
            stream.seek(infos[0].begin)
            left = sum(info.nbytes for info in infos)
            while left:
                chunk = next(buffers)[: left if plan else min(CHUNK, left)]
                _read_all(stream, chunk, file.origin)
                left -= len(chunk)
                yield _edited(infos[0], chunk, plan) if plan else chunk


def _stretches(file: WeightsFile, plans: Plans) -> Iterator[tuple[Plan, list[TensorInfo]]]:
    """Neighbours that nothing happens to, together; every other tensor by itself, with its plan."""
    infos: list[TensorInfo] = []
    for info in file.tensors:
        plan = plans.get(file.component + info.name, [])
        if plan or file.pickled is not None:
            if infos:
                yield [], infos
            infos = []
            yield plan, [info]
        else:
            infos.append(info)
    if infos:
        yield [], infos


def _edited(info: TensorInfo, raw: np.ndarray, plan: Plan) -> np.ndarray:
    """A tensor's bytes after its edits; `raw` is changed in place."""
    tensor = torch.from_numpy(raw).view(info.dtype).reshape(info.shape)
    for ref, edit in plan:
        edit.apply(tensor[ref.rows(info.shape[0])].view(-1))
    return raw


def _write_file(file: WeightsFile, plans: Plans, target: Path) -> str:
    """Write and hash side by side: while one piece is hashed, the next one is read and written."""
    digest = hashlib.sha256(file.header)
    with target.open("wb", buffering=0) as stream, ThreadPoolExecutor(1) as hasher:
        _write_all(stream, file.header)
        hashed: Future | None = None
        for piece in _pieces(file, plans):
            _write_all(stream, piece.data)
            if hashed is not None:
                hashed.result()
            hashed = hasher.submit(digest.update, piece.data)
        if hashed is not None:
            hashed.result()
        os.fsync(stream.fileno())
    return digest.hexdigest()


def _verify_file(file: WeightsFile, plans: Plans, target: Path) -> None:
    """Read back: every byte outside the plan is the input's, every planned entry is exactly what was asked for."""
    buffer = np.empty(CHUNK, np.uint8)
    with target.open("rb", buffering=0) as stream:
        good = stream.read(len(file.header)) == file.header
        for piece in _pieces(file, plans):
            buffer = buffer if len(buffer) >= len(piece) else np.empty(len(piece), np.uint8)
            written = buffer[: len(piece)]
            good = good and _read_all(stream, written) and _same(written, piece)
            if not good:
                break
        if not good:
            raise InvalidResult(f"{target.name}: what is on disk is not what was planned; nothing kept")
        if stream.read(1):
            raise InvalidResult(f"{target.name}: longer than planned; nothing kept")


def _read_all(stream: io.RawIOBase, buffer: np.ndarray, origin: Path | None = None) -> bool:
    """Fill a buffer; whether there was enough. Raises BadInput where `origin` is cut off."""
    rest = memoryview(buffer.data)
    while rest and (count := stream.readinto(rest)):
        rest = rest[count:]
    if rest and origin is not None:
        raise BadInput(f"{origin}: cut off while it was read")
    return not rest


def _same(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two byte arrays of one length are equal, compared eight bytes at a time."""
    whole = len(first) // 8 * 8
    halves = ((first[:whole].view(np.int64), second[:whole].view(np.int64)), (first[whole:], second[whole:]))
    return all(torch.equal(*map(torch.from_numpy, pair)) for pair in halves)


def write_tensors(target: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Write a new safetensors file tensor by tensor: name -> (dtype, shape, how to make it)."""
    with target.open("wb", buffering=0) as stream:
        _write_all(stream, make_header((name, dtype, shape) for name, (dtype, shape, _) in tensors.items()))
        for _, _, make in tensors.values():
            _write_all(stream, make().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        os.fsync(stream.fileno())


def _write_all(stream: io.RawIOBase, data: bytes | memoryview) -> None:
    """An unbuffered write may take only a part; small ones spare the kernel the search for large pages."""
    rest = memoryview(data)
    while rest:
        rest = rest[stream.write(rest[:WRITE]) :]
