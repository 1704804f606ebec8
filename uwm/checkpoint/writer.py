"""Write an edited copy of a checkpoint: same names, dtypes, shapes and order; only the planned entries differ."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import InvalidResult, ResourceFault
from ..weights import WeightId
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


def write_edited(checkpoint: Checkpoint, edits: Mapping[WeightId, Edit], folder: Path) -> dict[str, str]:
    """Stream the checkpoint into `folder` with its side files, then read it back and compare with the plan.

    Args:
        checkpoint: The source, left untouched.
        edits: What to change.
        folder: An existing, empty folder.

    Returns:
        sha256 of every weight file written, by name.

    Raises:
        InvalidResult: What is on disk is not what was planned.
        ResourceFault: The disk failed.
    """
    by_key: dict[str, list[tuple[WeightId, Edit]]] = {}
    for weight, edit in edits.items():
        by_key.setdefault(checkpoint.weights[weight].key, []).append((weight, edit))
    try:
        for name in checkpoint.side_files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoint.path / name, folder / name)
        hashes = {file.name: _write_file(checkpoint, file, by_key, folder / file.name) for file in checkpoint.files}
        for file in checkpoint.files:
            _verify_file(checkpoint, file, by_key, folder / file.name)
    except OSError as error:
        raise ResourceFault(f"{folder}: could not write: {error.strerror or error}") from error
    return hashes


def _edited(checkpoint: Checkpoint, info: TensorInfo, raw: np.ndarray, plan: list[tuple[WeightId, Edit]]) -> np.ndarray:
    """A tensor's bytes after its edits; `raw` is changed in place."""
    if not plan:
        return raw
    tensor = torch.from_numpy(raw).view(info.dtype).reshape(info.shape)
    for weight, edit in plan:
        rows = tensor[checkpoint.weights[weight].rows(info.shape[0])]
        edit.apply(rows.view(-1))
    return raw


def _write_file(checkpoint: Checkpoint, file: WeightsFile, by_key: Mapping, target: Path) -> str:
    digest = hashlib.sha256(file.header)
    with target.open("wb") as stream:
        stream.write(file.header)
        for info in file.tensors:
            raw = _edited(checkpoint, info, file.raw(info), by_key.get(info.name, []))
            digest.update(raw.data)
            stream.write(raw.data)
        stream.flush()
        os.fsync(stream.fileno())
    return digest.hexdigest()


def _verify_file(checkpoint: Checkpoint, file: WeightsFile, by_key: Mapping, target: Path) -> None:
    """Read back: every byte outside the plan is the input's, every planned entry is exactly what was asked for."""
    with target.open("rb") as stream:
        good = stream.read(len(file.header)) == file.header
        for info in file.tensors:
            written = np.fromfile(stream, dtype=np.uint8, count=info.nbytes)
            raw = file.raw(info)
            plan = by_key.get(info.name, [])
            good = good and np.array_equal(written, _edited(checkpoint, info, raw, plan))
            if not good:
                raise InvalidResult(f"{target.name}: {info.name!r} on disk is not what was planned; nothing kept")
        if stream.read(1):
            raise InvalidResult(f"{target.name}: longer than planned; nothing kept")


def file_sha256(path: Path) -> str:
    """sha256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
