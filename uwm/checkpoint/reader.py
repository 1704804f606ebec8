"""Open a checkpoint of any spelling and read its tensors one by one."""

from __future__ import annotations

import hashlib
import io
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BadInput
from ..layouts import Layout, find_tensors, recognise
from ..weights import WeightId, WeightRef
from .archive import Archive, open_archive
from .dtypes import DTYPES, NAMES, Bits, Dtype
from .header import make_header, read_header, valid_name
from .sources import Source, find_sources, safetensors_name, stated
from .tensors import StoredTensor, Tensors, Unfit

if TYPE_CHECKING:
    import torch

CHUNK = 1 << 19  # bytes read at once; a few of them stay in the processor's own memory
CASTS = ("float32", "float16", "bfloat16")
PREFIXES = ("module.", "_orig_mod.")  # of wrappers for many devices and for compiling
BARE_PREFIXES = (*PREFIXES, "model.")  # and of trainers; a folder's config may want that one
GROWTH = 16  # times that a torch file's tensors may outgrow it, tied and expanded ones counted in full
OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")  # sizes, which OpenAI stores beside the weights

logger = logging.getLogger(__name__)


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
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class WeightsFile:
    """One file of weights as it will be written: its name, header and tensors in the order of their bytes.

    Attributes:
        name: Where it belongs, relative to the checkpoint's folder, with ``/``.
        origin: The file it was read from.
        component: What stands before its tensors' names in the checkpoint's keys, ``text_encoder/`` in a pipeline.
        pickled: Where `origin` is a torch file, its tensors by name.
        scripted: Whether that file is a TorchScript archive.
    """

    name: str
    header: bytes
    tensors: tuple[TensorInfo, ...]
    origin: Path
    component: str = ""
    pickled: Mapping[str, StoredTensor] | None = field(default=None, repr=False)
    scripted: bool = False

    def raw(self, info: TensorInfo) -> np.ndarray:
        """A tensor's own bytes, a fresh uint8 array [nbytes]."""
        if self.pickled is not None:
            return self.pickled[info.name].bits().array.reshape(-1).view(np.uint8)
        with self.origin.open("rb") as stream:
            stream.seek(info.begin)
            data = np.fromfile(stream, dtype=np.uint8, count=info.nbytes)
        if len(data) != info.nbytes:
            raise BadInput(f"{self.origin}: cut off inside {info.name!r} while it was read")
        return data

    def chunks(self, info: TensorInfo, begin: int, end: int) -> Iterator[np.ndarray]:
        """Bytes `begin` to `end` of a tensor, uint8, `CHUNK` at a time; each is good until the next is asked for."""
        if self.pickled is not None:
            whole = self.raw(info)
            yield from (whole[first : min(first + CHUNK, end)] for first in range(begin, end, CHUNK))
            return
        buffer = np.empty(min(CHUNK, end - begin), np.uint8)
        with self.origin.open("rb", buffering=0) as stream:
            stream.seek(info.begin + begin)
            for left in range(end - begin, 0, -CHUNK):
                yield read_into(stream, buffer[:left], self.origin)

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
    """

    path: Path
    files: tuple[WeightsFile, ...]
    layout: Layout
    tensors: dict[WeightId, WeightRef]
    side_files: tuple[Path, ...] = ()
    indices: tuple[tuple[str, bytes], ...] = ()

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
        return {file.origin.relative_to(base).as_posix(): file_sha256(file.origin) for file in self.files}

    def folder_of(self, tower: str) -> Path | None:
        """The folder with a tower's config and weights; None for bare weights."""
        found = self.layout.tower(tower)
        if found is None or not self.path.is_dir():
            return None
        return next(file.origin.parent for key, (file, _) in self.entries.items() if key.startswith(found.prefix))

    def read(self, key: str) -> torch.Tensor:
        """A stored tensor in its own dtype and shape."""
        return self.bits(key).torch()

    def bits(self, key: str) -> Bits:
        """The same as bit patterns, for which torch is not needed."""
        file, info = self.entries[key]
        raw = file.raw(info) if info.nbytes else np.empty(0, np.uint8)
        return Bits(info.dtype, raw.view(info.dtype.bits).reshape(info.shape))

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
        before = rows.start * math.prod(others) * info.dtype.itemsize
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


def read_into(stream: io.RawIOBase, buffer: np.ndarray, origin: Path) -> np.ndarray:
    """Fill a buffer from an unbuffered file, and return it. Raises BadInput where the file ends before."""
    rest = memoryview(buffer.data)
    while rest and (count := stream.readinto(rest)):
        rest = rest[count:]
    if rest:
        raise BadInput(f"{origin}: cut off while it was read")
    return buffer


def same_bytes(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two byte arrays of one length are equal, compared eight bytes at a time."""
    whole = len(first) // 8 * 8
    return np.array_equal(first[:whole].view(np.int64), second[:whole].view(np.int64)) and np.array_equal(
        first[whole:], second[whole:]
    )


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


def open_checkpoint(path: str | Path, key: str | None = None) -> Checkpoint:
    """Open a weight file or a folder that holds one.

    Args:
        path: A safetensors or torch file; a folder of Hugging Face, open_clip, sentence-transformers or diffusers.
        key: Which entry of a training checkpoint holds the weights, where there are several.

    Raises:
        BadInput: Missing, damaged or unknown.
        Refused: A pickle that asks for more than tensors, or a path that leaves its folder.
    """
    path = Path(path)
    source = find_sources(path)
    prefixes = PREFIXES if path.is_dir() else BARE_PREFIXES
    files = tuple(
        _open_file(place, name, component, key, () if place in source.promised else prefixes)
        for place, name, component in source.files
    )
    _check_promised(path, source, files)
    keys = [file.component + info.name for file in files for info in file.tensors]
    layout = _recognised(keys, path)
    if not path.is_dir():
        files = (replace(files[0], name=layout.file_name),)
    elif len(files) == 1 and files[0].pickled is not None:
        files = (replace(files[0], name=str(Path(files[0].name).with_name(layout.file_name))),)
    return Checkpoint(path, files, layout, find_tensors(layout, keys), source.side_files, source.indices)


def _recognised(keys: list[str], path: Path) -> Layout:
    """The layout; what is not recognised is called by its model type too, where its folder says one."""
    kind = stated(path / "config.json").get("model_type")
    return recognise(keys, str(path) if kind is None else f"{path} (of model_type {kind!r})")


def _check_promised(path: Path, source: Source, files: tuple[WeightsFile, ...]) -> None:
    """Every tensor of a shard index lies where it says, and nowhere else."""
    for (place, _, _), file in zip(source.files, files, strict=True):
        promised, held = source.promised.get(place), {info.name for info in file.tensors}
        if promised is not None and held != promised:
            odd = sorted(held ^ promised)
            raise BadInput(
                f"{place}: {odd[0]!r} is {'missing here' if odd[0] in promised else 'not promised here'} by the index, "
                "or lies in two shards; download both again"
            )
    held_bytes = sum(info.nbytes for file in files for info in file.tensors)
    if source.total_size not in (None, held_bytes):
        logger.warning("%s: the index says %s bytes, the shards hold %d", path, source.total_size, held_bytes)


def _open_file(path: Path, name: str, component: str, key: str | None, prefixes: tuple[str, ...]) -> WeightsFile:
    with path.open("rb") as stream:
        start = stream.read(512)
        # The low bytes of a header's length can be those of a pickle or a zip; what follows them cannot.
        if start[8:9] != b"{" and start[257:262] == b"ustar":
            raise BadInput(f"{path}: a tar file, perhaps of torch 0.1; re-save it with a current torch")
        if start[8:9] != b"{" and (start[:2] == b"PK" or start[:1] in (b"\x80", b"c", b"(")):
            return _open_pickle(path, name, component, key, prefixes)
        stream.seek(0)
        header, entries = read_header(stream, path.stat().st_size, str(path))
    infos = tuple(
        TensorInfo(name, DTYPES[e["dtype"]], tuple(e["shape"]), len(header) + e["data_offsets"][0])
        for name, e in entries.items()
    )
    return WeightsFile(name, header, infos, path, component)


def _open_pickle(path: Path, name: str, component: str, key: str | None, prefixes: tuple[str, ...]) -> WeightsFile:
    """A torch file as the safetensors file that will be written of it."""
    archive = open_archive(path)
    held = dict(sorted(_state_dict(archive, path, key, prefixes).items()))
    nbytes, size = sum(math.prod(t.shape) * t.dtype.itemsize for t in held.values()), path.stat().st_size
    if nbytes > GROWTH * size:
        raise BadInput(f"{path}: has {size} bytes, and its tensors ask for {nbytes}; re-save it without expanded ones")
    header = make_header((name, t.dtype, t.shape) for name, t in held.items())
    infos, begin = [], len(header)
    for tensor_name, tensor in held.items():
        infos.append(TensorInfo(tensor_name, tensor.dtype, tensor.shape, begin))
        begin += infos[-1].nbytes
    place = Path(name).with_name(safetensors_name(Path(name).name))
    return WeightsFile(str(place), header, tuple(infos), path, component, held, archive.scripted)


def _state_dict(archive: Archive, path: Path, key: str | None, prefixes: tuple[str, ...]) -> dict[str, StoredTensor]:
    """The tensors of a torch file, without the prefixes that all of their names share."""
    loaded: dict[str, StoredTensor] = {}
    unfit = set()
    for name, tensor in _choose(archive.state_dicts, path, key).items():
        if not isinstance(tensor, StoredTensor) or tensor.dtype not in NAMES:
            unfit.add(tensor.kind if isinstance(tensor, Unfit) else tensor.dtype.name)
        else:
            loaded[name] = tensor
    if all(name in loaded and loaded[name].shape == () for name in OPENAI_NUMBERS):
        loaded = {name: tensor for name, tensor in loaded.items() if name not in OPENAI_NUMBERS}
    if unfit:
        raise BadInput(f"{path}: {', '.join(sorted(unfit))} tensors cannot be written as safetensors")
    while loaded and (prefix := next((p for p in prefixes if all(name.startswith(p) for name in loaded)), None)):
        loaded = {name[len(prefix) :]: tensor for name, tensor in loaded.items()}
    if odd := [name for name in loaded if not valid_name(name)]:
        raise BadInput(f"{path}: tensor name {odd[0][:100]!r} is empty or has characters that no name may have")
    return loaded


def _choose(found: dict[str, Tensors], path: Path, key: str | None) -> Tensors:
    """The one state dict of a training checkpoint, or the one that `key` names."""
    there = ", ".join(map(repr, found))
    if not found:
        raise BadInput(f"{path}: holds no state dict; expected tensors by name, bare or under 'state_dict' or 'model'")
    if key is not None:
        if key not in found:
            raise BadInput(f"{path}: --key {key!r} holds no state dict; there is {there}")
        return found[key]
    models = [name for name, held in found.items() if _is_model(held)] or list(found)
    if len(models) > 1:
        raise BadInput(f"{path}: holds several state dicts ({there}); choose one with --key")
    return found[models[0]]


def _is_model(held: Tensors) -> bool:
    """Whether an encoder is among the names; what an optimizer or a random generator keeps has none."""
    try:
        recognise(held, "")
    except BadInput:
        return False
    return True
