"""Write an edited copy of a checkpoint: same names, dtypes, shapes and order; only the planned entries differ."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import BadInput, InvalidResult, ResourceFault
from ..weights import WeightId, WeightRef
from .reader import Checkpoint, TensorInfo, WeightsFile

CHUNK = 1 << 24  # bytes


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
) -> dict[str, str]:
    """Stream the checkpoint into `folder` with its side files, then read it back and compare with the plan.

    Args:
        checkpoint: The source, left untouched.
        edits: What to change. A tensor that is stored once under several names changes under all of them.
        folder: An existing, empty folder.
        aliases: Tied tensors that the checkpoint itself no longer tells, key -> others.

    Returns:
        sha256 of every weight file written, by name.

    Raises:
        BadInput: Two edits of one stored matrix, or tied tensors that differ. ResourceFault: The disk failed.
        InvalidResult: What is on disk is not what was planned.
    """
    plans = _plans(checkpoint, edits, {**checkpoint.aliases, **(aliases or {})})
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


Plans = dict[str, list[tuple[WeightRef, Edit]]]  # key -> what happens to which rows


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


def _edited(info: TensorInfo, raw: np.ndarray, plan: list[tuple[WeightRef, Edit]]) -> np.ndarray:
    """A tensor's bytes after its edits; `raw` is changed in place."""
    if not plan:
        return raw
    tensor = torch.from_numpy(raw).view(info.dtype).reshape(info.shape)
    for ref, edit in plan:
        edit.apply(tensor[ref.rows(info.shape[0])].view(-1))
    return raw


def _write_file(file: WeightsFile, plans: Plans, target: Path) -> str:
    """Write and hash side by side: while one tensor is hashed, the next one is read."""
    digest = hashlib.sha256(file.header)
    with target.open("wb", buffering=0) as stream, ThreadPoolExecutor(1) as hasher:
        _write_all(stream, file.header)
        hashed = None
        for info in file.tensors:
            raw = _edited(info, file.raw(info), plans.get(file.component + info.name, []))
            if hashed is not None:
                hashed.result()
            hashed = hasher.submit(digest.update, raw.data)
            _write_all(stream, raw.data)
        if hashed is not None:
            hashed.result()
        os.fsync(stream.fileno())
    return digest.hexdigest()


def _write_all(stream: io.RawIOBase, data: bytes | memoryview) -> None:
    """An unbuffered write may take only a part (Linux: 2 GB at a time)."""
    rest = memoryview(data)
    while rest:
        rest = rest[stream.write(rest) :]


def _verify_file(file: WeightsFile, plans: Plans, target: Path) -> None:
    """Read back: every byte outside the plan is the input's, every planned entry is exactly what was asked for."""
    with target.open("rb") as stream:
        good = stream.read(len(file.header)) == file.header
        for info in file.tensors:
            written = np.fromfile(stream, dtype=np.uint8, count=info.nbytes)
            planned = _edited(info, file.raw(info), plans.get(file.component + info.name, []))
            if not good or not _same(written, planned):
                raise InvalidResult(f"{target.name}: {info.name!r} on disk is not what was planned; nothing kept")
        if stream.read(1):
            raise InvalidResult(f"{target.name}: longer than planned; nothing kept")


def _same(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two byte arrays are equal, compared eight bytes at a time."""
    whole = len(first) // 8 * 8
    halves = ((first[:whole].view(np.int64), second[:whole].view(np.int64)), (first[whole:], second[whole:]))
    return len(first) == len(second) and all(torch.equal(*map(torch.from_numpy, pair)) for pair in halves)


def file_sha256(path: Path) -> str:
    """sha256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
