"""Open a checkpoint of any spelling and read its tensors one by one."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import BadInput, Refused
from ..layouts import Layout, find_weights, recognise
from ..weights import WeightId, WeightRef
from .header import DTYPES, NAMES, make_header, read_header

FOLDER_CANDIDATES = (  # in this order; a pickle only when there is nothing better
    "model.safetensors", "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors",
    "pytorch_model.bin", "open_clip_pytorch_model.bin",
)  # fmt: skip
WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx"}
WRAPPERS = ("state_dict", "model")
DAMAGE = (  # torch's reader checks little: a damaged file surfaces as any of these
    RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError, OSError,
    ArithmeticError, struct.error, zipfile.BadZipFile,
)  # fmt: skip
PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor: where its bytes begin in its file, and how to read them."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class WeightsFile:
    """One file of weights as it will be written: its name, header and tensors in the order of their bytes.

    `origin` is the file it was read from; `source` the same where that is safetensors, to read tensors from, and None
    where it is a pickle, whose tensors are `held` in memory.
    """

    name: str
    header: bytes
    tensors: tuple[TensorInfo, ...]
    origin: Path
    source: Path | None
    held: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False)

    def raw(self, info: TensorInfo) -> np.ndarray:
        """A tensor's own bytes, a fresh uint8 array [nbytes]."""
        if self.source is None:
            return self.held[info.name].contiguous().reshape(-1).view(torch.uint8).numpy().copy()
        with self.source.open("rb") as stream:
            stream.seek(info.begin)
            data = np.fromfile(stream, dtype=np.uint8, count=info.nbytes)
        if len(data) != info.nbytes:
            raise BadInput(f"{self.source}: cut off inside {info.name!r} while it was read")
        return data


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, opened but not loaded.

    Attributes:
        path: What was opened, a file or a folder.
        files: Its weight files.
        layout: The family's spelling, recognised from the keys.
        weights: Every editable weight and where it lives.
        side_files: For a folder, what else belongs to it (config, tokenizer), relative to `path`.
    """

    path: Path
    files: tuple[WeightsFile, ...]
    layout: Layout
    weights: dict[WeightId, WeightRef]
    side_files: tuple[Path, ...] = ()

    def locate(self, key: str) -> tuple[WeightsFile, TensorInfo]:
        """The file and entry of a tensor. Raises KeyError when there is none."""
        for file in self.files:
            for info in file.tensors:
                if info.name == key:
                    return file, info
        raise KeyError(key)

    def read(self, key: str) -> torch.Tensor:
        """A stored tensor in its own dtype and shape; not to be changed, it may be the checkpoint's own."""
        file, info = self.locate(key)
        if file.source is None:
            return file.held[key]
        if not info.nbytes:
            return torch.empty(info.shape, dtype=info.dtype)
        return torch.from_numpy(file.raw(info)).view(info.dtype).reshape(info.shape)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All tensors, by their stored names."""
        return {name: self.read(name) for name in self.shapes()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors, by their stored names."""
        return {info.name: info.shape for file in self.files for info in file.tensors}

    def matrix(self, weight: WeightId) -> torch.Tensor:
        """One weight's stored values, [out, in]."""
        ref = self.weights[weight]
        tensor = self.read(ref.key)
        return tensor[ref.rows(len(tensor))]

    def fingerprint(self, weight: WeightId) -> str:
        """sha256 of one weight's stored bytes, the same in every spelling of the same values and dtype."""
        return matrix_sha256(self.matrix(weight))


def matrix_sha256(matrix: torch.Tensor) -> str:
    """sha256 of a tensor's values as little-endian bytes in row order."""
    return hashlib.sha256(matrix.contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a weight file or a folder that holds one.

    Raises:
        BadInput: Missing, damaged or unknown.
        Refused: A pickle that asks for more than tensors, or a path that leaves its folder.
    """
    path = Path(path)
    if path.is_dir():
        sources, side_files = _in_folder(path), tuple(_side_files(path))
    elif path.is_file():
        sources, side_files = [path], ()
    else:
        raise BadInput(f"{path}: no such file or folder" if not path.exists() else f"{path}: not a regular file")
    files = tuple(_open_file(source) for source in sources)
    keys = [info.name for file in files for info in file.tensors]
    layout = recognise(keys, str(path))
    if not path.is_dir() or files[0].source is None:
        files = (replace(files[0], name=layout.file_name),)
    return Checkpoint(path, files, layout, find_weights(layout, keys), side_files)


def _in_folder(folder: Path) -> list[Path]:
    for index in sorted(folder.glob("*.safetensors.index.json")):
        return _shards(index)
    for name in FOLDER_CANDIDATES:
        if (folder / name).is_file():
            return [folder / name]
    raise BadInput(f"{folder}: no weights in this folder; expected one of {', '.join(FOLDER_CANDIDATES)} or an index")


def _shards(index: Path) -> list[Path]:
    """The shard files of a safetensors index, checked to lie in the index's own folder."""
    try:
        weight_map = json.loads(index.read_text("utf-8-sig"))["weight_map"]
        names = sorted(set(weight_map.values()))
        if not all(isinstance(name, str) for name in names):
            raise ValueError("a shard's name is no text")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise BadInput(f"{index}: not a shard index ({error})") from None
    for name in names:
        if not re.fullmatch(r"[\w.\-]+\.safetensors", name):
            raise Refused(f"{index}: shard name {name!r} is not a plain .safetensors file name in this folder")
        if not (index.parent / name).is_file():
            raise BadInput(f"{index}: shard {name!r} is missing; download it again")
    _check_shards(index, weight_map)
    return [index.parent / name for name in names]


def _check_shards(index: Path, weight_map: dict[str, str]) -> None:
    """Every tensor of the index lies where it says, and nowhere else."""
    for shard in sorted(set(weight_map.values())):
        held = {info.name for info in _open_file(index.parent / shard).tensors}
        promised = {name for name, place in weight_map.items() if place == shard}
        if held != promised:
            odd = sorted(held ^ promised)
            raise BadInput(
                f"{index}: {odd[0]!r} is not {'in' if odd[0] in promised else 'promised for'} {shard}, or lies in "
                "two shards; download both again"
            )


def _side_files(folder: Path) -> list[Path]:
    """What an edited copy takes along: everything but weights, hidden files, our own outputs and the old card."""
    own = {"uwm.json", "README.md", "report.html"}
    return sorted(
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.is_file()
        and path.suffix not in WEIGHT_SUFFIXES
        and path.name not in own
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _open_file(path: Path) -> WeightsFile:
    with path.open("rb") as stream:
        start = stream.read(10)
        # The low bytes of a header's length can be those of a pickle or a zip; what follows them cannot.
        if start[8:9] != b"{" and (start[:2] == b"PK" or start[:1] == b"\x80"):
            return _open_pickle(path)
        stream.seek(0)
        header, entries = read_header(stream, path.stat().st_size, str(path))
    infos = tuple(
        TensorInfo(name, DTYPES[e["dtype"]], tuple(e["shape"]), len(header) + e["data_offsets"][0])
        for name, e in entries.items()
    )
    return WeightsFile(path.name, header, infos, path, path)


def _open_pickle(path: Path) -> WeightsFile:
    """Read a pickled state dict through torch's allow-list reader; nothing else is ever tried."""
    try:
        if _is_torchscript(path):
            raise BadInput(f"{path}: a TorchScript archive; save its state_dict() with torch.save first")
        with path.open("rb") as stream, warnings.catch_warnings():  # a stream: torch would go by a path's suffix
            warnings.simplefilter("ignore")
            loaded = torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.findall(r"GLOBAL ([\w.]+)", str(error))
        what = f"asks for {', '.join(asked)}" if asked else "holds more than tensors, or is damaged"
        raise Refused(f"{path}: refused, this pickle {what}; re-save only its state_dict") from None
    except DAMAGE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise BadInput(f"{path}: damaged pickle ({reason}); download it again") from None
    held = dict(sorted(_unwrap(loaded, path).items()))
    header = make_header((name, t.dtype, tuple(t.shape)) for name, t in held.items())
    infos, begin = [], len(header)
    for name, tensor in held.items():
        infos.append(TensorInfo(name, tensor.dtype, tuple(tensor.shape), begin))
        begin += infos[-1].nbytes
    return WeightsFile(path.with_suffix(".safetensors").name, header, tuple(infos), path, None, held)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _unwrap(loaded: Any, path: Path) -> dict[str, torch.Tensor]:
    """The state dict inside a training checkpoint, without the prefix that all of its keys share."""
    for wrapper in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    good = isinstance(loaded, dict) and loaded
    if not good or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in loaded.items()):
        raise BadInput(f"{path}: holds no state dict; expected tensors by name, bare or under 'state_dict' or 'model'")
    kinds = {name: _kind(tensor) for name, tensor in loaded.items()}
    unknown = {kind for kind in kinds.values() if kind}
    if unknown:
        raise BadInput(f"{path}: tensors of {', '.join(sorted(unknown))} cannot be written as safetensors")
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in loaded)), None):
        loaded = {name[len(prefix) :]: tensor for name, tensor in loaded.items()}
    return {name: tensor.detach().resolve_conj().resolve_neg() for name, tensor in loaded.items()}


def _kind(tensor: torch.Tensor) -> str | None:
    """What makes a tensor unfit for a safetensors file, or None."""
    if tensor.layout != torch.strided or tensor.is_meta:
        return f"{tensor.layout} layout on {tensor.device}"
    return None if tensor.dtype in NAMES else str(tensor.dtype)
