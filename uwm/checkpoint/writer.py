"""Write an edited copy of a checkpoint: same names, dtypes, shapes and order; only the planned entries differ."""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import BadInput, InvalidResult, ResourceFault
from ..weights import WeightId, WeightRef
from .containment import demand_contained
from .dtypes import Bits, Dtype
from .header import make_header, rewritten
from .reader import CHUNK, Checkpoint, TensorInfo, WeightsFile, same_bytes

if TYPE_CHECKING:
    import torch

BATCH = 16  # pieces written before the disk is asked to take them; two batches stay in the processor's own memory
LazyTensor = tuple[Any, tuple[int, ...], Callable[[], "torch.Tensor"]]  # type as for `dtypes.dtype_of`, shape, maker


class Rewrite(Protocol):
    """What happens to a run of a tensor's values: a change of `uwm.editing.changes`, or a replacement."""

    def change(self, bits: np.ndarray, dtype: Dtype, first: int = 0) -> None:
        """Change a run in place, as bit patterns; `first` is the flat index of the run's first value."""


@dataclass(frozen=True)
class Replacement:
    """A whole tensor is replaced by this one, of the same shape, in the stored dtype."""

    tensor: torch.Tensor | Bits

    def change(self, bits: np.ndarray, dtype: Dtype, first: int = 0) -> None:
        """Fill a run of the tensor's values."""
        if isinstance(self.tensor, Bits):
            bits[:] = self.tensor.array.reshape(-1)[first : first + len(bits)]
            return
        values = Bits.of(self.tensor.reshape(-1)[first : first + len(bits)])
        bits[:] = (values if values.dtype == dtype else Bits.of(values.torch().to(dtype.torch))).array


def write_edited(
    checkpoint: Checkpoint,
    edits: Mapping[WeightId, Rewrite],
    folder: Path,
    aliases: Mapping[str, list[str]] | None = None,
    replaced: Mapping[str, torch.Tensor] | None = None,
    with_config: bool = False,
) -> dict[str, str]:
    """Stream the checkpoint into `folder` with its side files, read it back and compare with the plan.

    Args:
        checkpoint: The source, left untouched.
        edits: What to change. A tensor that is stored once under several names changes under all of them.
        folder: An existing, empty folder.
        aliases: Tied tensors that the checkpoint itself no longer tells, key -> others.
        replaced: Key -> a new tensor of the same shape, for what is not edited but made anew.
        with_config: A config will stand beside bare weights, so that their library loads the folder.

    Returns:
        sha256 of every weight file written, by name.

    Raises:
        BadInput: Two edits of one stored matrix, or tied tensors that differ. ResourceFault: The disk failed, or the
            checkpoint was changed since it was opened.
        InvalidResult: What is on disk is not what was planned.
    """
    plans = _plans(checkpoint, edits, {**checkpoint.aliases, **(aliases or {})})
    for key, tensor in (replaced or {}).items():
        assert tuple(tensor.shape) == checkpoint.entries[key][1].shape
        plans[key] = [(WeightRef(key), Replacement(tensor))]
    try:
        for name in checkpoint.side_files:
            demand_contained(checkpoint.path / name, checkpoint.path)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoint.path / name, folder / name)
        for index, content in checkpoint.indices:
            (folder / index).parent.mkdir(parents=True, exist_ok=True)
            (folder / index).write_bytes(content)
        hashes, read = {}, {}
        for file in _for_library(checkpoint, with_config):
            (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
            hashes[file.name], read[str(file.origin)] = _write_file(file, plans, folder / file.name)
        # The hash of a torch file is not of what was read of it just now.
        checkpoint.demand_unchanged({str(f.origin): read[str(f.origin)] for f in checkpoint.files if f.pickled is None})
        for file in checkpoint.files:
            file.held.note(read[str(file.origin)])
    except OSError as error:
        raise ResourceFault(f"{folder}: could not write: {error.strerror or error}") from error
    return hashes


def _for_library(checkpoint: Checkpoint, with_config: bool) -> Iterator[WeightsFile]:
    """The files as they are written: marked for transformers where it will load the folder, otherwise as they are."""
    folder = with_config or any(name.name == "config.json" for name in checkpoint.side_files)
    for file in checkpoint.files:
        marked = folder and checkpoint.layout.library == "transformers"
        yield replace(file, header=rewritten(file.header, marked=True)) if marked else file


Plan = list[tuple[WeightRef, Rewrite]]  # what happens to which rows of one tensor
Plans = dict[str, Plan]  # by the tensor's key


def _plans(checkpoint: Checkpoint, edits: Mapping[WeightId, Rewrite], aliases: Mapping[str, list[str]]) -> Plans:
    plans: Plans = {}
    named = {checkpoint.tensors[name].key for name in edits}
    for name, edit in edits.items():
        ref = checkpoint.tensors[name]
        plans.setdefault(ref.key, []).append(_turned(checkpoint, name, edit) if ref.transposed else (ref, edit))
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


def _turned(checkpoint: Checkpoint, name: WeightId, edit: Rewrite) -> tuple[WeightRef, Rewrite]:
    """An edit of a matrix that is stored transposed, as the whole tensor in the order of its bytes."""
    whole = checkpoint.matrix_bits(name)
    array = whole.array.copy()
    edit.change(array.reshape(-1), whole.dtype)
    return WeightRef(checkpoint.tensors[name].key), Replacement(Bits(whole.dtype, np.ascontiguousarray(array.T)))


def _pieces(file: WeightsFile, plans: Plans, read: Source) -> Iterator[np.ndarray]:
    """The tensors' bytes as they shall be written, in order; those of the last two batches stay good.

    A torch file's tensors come whole, all others in chunks through the same buffers, since fresh memory can cost more
    than the copy.
    """
    buffers = itertools.cycle([np.empty(CHUNK, np.uint8) for _ in range(2 * BATCH)])
    for plan, infos in _stretches(file, plans):
        if file.pickled is not None:
            yield _edited(infos[0], file.raw(infos[0]), plan)
            continue
        size = sum(info.nbytes for info in infos)
        for begin in range(0, size, CHUNK):
            chunk = next(buffers)[: size - begin]
            file.fill(infos[0].begin + begin, chunk)
            read.update(chunk)
            yield _edited(infos[0], chunk, plan, begin) if plan else chunk


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


def _edited(info: TensorInfo, raw: np.ndarray, plan: Plan, begin: int = 0) -> np.ndarray:
    """A tensor's bytes from `begin` on after its edits; `raw` is changed in place."""
    bits, first = raw.view(info.dtype.bits), begin // info.dtype.itemsize
    total, *others = info.shape or (1,)
    for ref, edit in plan:
        rows, width = ref.rows(total), math.prod(others)
        start, end = (min(max(row * width - first, 0), len(bits)) for row in (rows.start, rows.stop))
        edit.change(bits[start:end], info.dtype, first + start - rows.start * width)
    return raw


class Source:
    """sha256 of an input file as it is read for the output: its header first, then its tensors in order."""

    def __init__(self, file: WeightsFile) -> None:
        self._digest, self._file = hashlib.sha256(), file
        if file.pickled is None:
            header = np.empty(min((info.begin for info in file.tensors), default=0), np.uint8)
            file.fill(0, header)
            self.update(header)

    def update(self, piece: np.ndarray) -> None:
        """Add the next bytes."""
        self._digest.update(piece.data)

    def sha256(self) -> str:
        """Of the whole file; a torch file's tensors do not fill it in order, so it is read for it."""
        return self._digest.hexdigest() if self._file.pickled is None else self._file.held.sha256()


def _write_file(file: WeightsFile, plans: Plans, target: Path) -> tuple[str, str]:
    """Write a file batch by batch; each is synced, read back and verified while the disk takes the next.

    Returns:
        sha256 of the file, and of the one that it was made from.

    Raises:
        InvalidResult: What the disk gives back is not what was planned.
    """
    digest, before, read = hashlib.sha256(), None, Source(file)
    pieces = itertools.chain([np.frombuffer(file.header, np.uint8)], _pieces(file, plans, read))
    with (
        target.open("wb", buffering=0) as stream,
        target.open("rb", buffering=0) as back,
        ThreadPoolExecutor(1) as hasher,
        ThreadPoolExecutor(1) as syncer,
    ):
        while batch := list(itertools.islice(pieces, BATCH if file.pickled is None else 1)):
            for piece in batch:
                _write_all(stream, piece.data)
            synced, hashed = syncer.submit(os.fsync, stream.fileno()), hasher.submit(_hash, digest, batch)
            if before is not None:
                _verify(back, *before)
            before = batch, synced, hashed
        assert before is not None
        _verify(back, *before)
        if back.read(1):
            raise InvalidResult(f"{target.name}: longer than planned; nothing kept")
    return digest.hexdigest(), read.sha256()


def _hash(digest: hashlib._Hash, batch: list[np.ndarray]) -> None:
    for piece in batch:
        digest.update(piece.data)


def _verify(back: io.FileIO, batch: list[np.ndarray], synced: Future[None], hashed: Future[None]) -> None:
    """Once the disk has a batch, read it back: every byte is the planned one.

    Raises:
        InvalidResult: It is not so, or less was written than planned.
    """
    synced.result()
    begin = back.tell()
    if not all(_reads_back(back, piece) for piece in batch):
        raise InvalidResult(f"{Path(back.name).name}: what is on disk is not what was planned; nothing kept")
    if hasattr(os, "posix_fadvise"):  # memory given back at once is cheaper for the system than ever more of it
        os.posix_fadvise(back.fileno(), begin, back.tell() - begin, os.POSIX_FADV_DONTNEED)
    hashed.result()


def _reads_back(stream: io.RawIOBase, piece: np.ndarray) -> bool:
    """Whether the next bytes of a file are these."""
    buffer = np.empty(min(CHUNK, len(piece)), np.uint8)
    for begin in range(0, len(piece), CHUNK):
        planned = piece[begin : begin + CHUNK]
        found = buffer[: len(planned)]
        if stream.readinto(found.data) != len(planned) or not same_bytes(found, planned):
            return False
    return True


def write_tensors(target: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Write a new safetensors file tensor by tensor: name -> (dtype, shape, how to make it)."""
    with target.open("wb", buffering=0) as stream:
        _write_all(stream, make_header((name, dtype, shape) for name, (dtype, shape, _) in tensors.items()))
        for _, _, make in tensors.values():
            _write_all(stream, Bits.of(make()).array.reshape(-1).view(np.uint8).data)
        os.fsync(stream.fileno())


def _write_all(stream: io.RawIOBase, data: bytes | memoryview) -> None:
    """An unbuffered write may take only a part; small ones spare the kernel the search for large pages."""
    rest = memoryview(data)
    while rest:
        rest = rest[stream.write(rest[:CHUNK]) :]
