"""Open a checkpoint: which files, which tensors, which encoders, and what a user should know of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from ..errors import BadInput, UwmError
from ..layouts import Layout, find_tensors, of_blocks, recognise
from .adapters import refuse_adapter_tensors
from .archive import Archive, open_archive
from .dtypes import DTYPES, NAMES
from .header import make_header, metadata_of, read_header, rewritten, valid_name
from .held import Held
from .json_files import stated
from .reader import Checkpoint, TensorInfo, WeightsFile, identity_of
from .sources import Source, find_sources, safetensors_name
from .tensors import StoredTensor, Tensors, Unfit

PREFIXES = ("module.", "_orig_mod.")  # of wrappers for many devices and for compiling
BARE_PREFIXES = (*PREFIXES, "model.")  # and of trainers; a folder's config may want that one
TRANSPOSED = {"tf": "TensorFlow", "flax": "Flax"}  # format -> who stores [in, out] under the same names
GROWTH = 16  # times that a torch file's tensors may outgrow it, tied and expanded ones counted in full
OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")  # sizes, which OpenAI stores beside the weights

logger = logging.getLogger(__name__)


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
    refuse_adapter_tensors(keys, path)
    _refuse_mixed(keys, path)
    layout = _recognised(keys, path)
    _refuse_copies(layout, {f.component + i.name: i.shape for f in files for i in f.tensors}, path)
    if not path.is_dir():
        files = (replace(files[0], name=layout.file_name),)
    elif len(files) == 1 and files[0].pickled is not None:
        files = (replace(files[0], name=str(Path(files[0].name).with_name(layout.file_name))),)
    notes = (*_unwrapped_notes(files), *_left_out_notes(source, files))
    beside = {name: identity_of(path / name) for name in source.side_files}
    return Checkpoint(path, files, layout, find_tensors(layout, keys), source.side_files, source.indices, notes, beside)


def _recognised(keys: list[str], path: Path) -> Layout:
    """The layout; what is not recognised is called by its model type too, where its folder says one."""
    kind = stated(path / "config.json").get("model_type")
    return recognise(keys, str(path) if kind is None else f"{path} (of model_type {kind!r})")


def _refuse_mixed(keys: list[str], path: Path) -> None:
    """Refuse encoders of which a wrapper's prefix stands before some names and not before others. Raises BadInput."""
    for prefix in PREFIXES:
        wrapped = [key for key in keys if key.startswith(prefix)]
        bare = [key for key in keys if not key.startswith(prefix)]
        if of_blocks(wrapped) and (odd := of_blocks(bare)):
            raise BadInput(
                f"{path}: {len(wrapped)} tensor names begin with {prefix} and {len(bare)} do not, such as {odd[0]!r}; "
                "save the model inside of its wrapper, alone"
            )


def _refuse_copies(layout: Layout, shapes: dict[str, tuple[int, ...]], path: Path) -> None:
    """Refuse two models of one kind side by side, such as student and teacher, or a model and its average.

    Raises:
        BadInput: Two encoders have tensors of the same names and shapes, in one component.
    """

    def held(prefix: str) -> dict[str, tuple[int, ...]]:
        return {key[len(prefix) :]: shape for key, shape in shapes.items() if key.startswith(prefix)}

    kind = stated(path / "config.json").get("model_type")
    if isinstance(kind, str) and "clip" not in kind:
        return  # a bigger model may well have two: one of images, one of videos
    for first, second in combinations(layout.towers, 2):
        apart = "/" in first.prefix and first.prefix.partition("/")[0] != second.prefix.partition("/")[0]
        if first.encoder is second.encoder and not apart and held(first.prefix) == held(second.prefix):
            raise BadInput(
                f"{path}: holds two models of one kind, {first.prefix}… and {second.prefix}…, and which one to edit "
                "cannot be known; save that one to a file of its own"
            )


def _unwrapped_notes(files: tuple[WeightsFile, ...]) -> Iterator[str]:
    for file in files:
        if file.wrapper:
            yield f"{file.origin}: all tensor names begin with {file.wrapper}, which outputs leave out"


def _left_out_notes(source: Source, files: tuple[WeightsFile, ...]) -> Iterator[str]:
    """Weights beside those that were read: another format or precision of them, which an output does not have."""
    for folder, others in source.left_out.items():
        read = next(file for file in files if file.origin.parent == folder)
        listed = ", ".join(f"{path.name}{_stored_as(path)}" for path in others[:4])
        listed += f" and {len(others) - 4} more" if len(others) > 4 else ""
        word = "were" if others[1:] else "was"
        name = f"{read.origin.name} ({_main_dtype(read)})"
        yield f"{folder}: {name} was read; {listed} beside it {word} not, and an output has only what was read"


def _stored_as(path: Path) -> str:
    try:
        return f" ({_main_dtype(_open_file(path, path.name, '', None, BARE_PREFIXES))})"
    except (UwmError, OSError):
        return ""  # an index, another library's format, or not a model


def _main_dtype(file: WeightsFile) -> str:
    """The type that most of a file's bytes have."""
    totals: dict[str, int] = {}
    for info in file.tensors:
        totals[info.dtype.name] = totals.get(info.dtype.name, 0) + info.nbytes
    return max(sorted(totals), key=totals.__getitem__)


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
    if source.total_size not in (None, held_bytes) and len(kinds := {_main_dtype(file): file for file in files}) > 1:
        listed = ", ".join(f"{file.origin.name} ({kind})" for kind, file in sorted(kinds.items()))
        raise BadInput(
            f"{path}: the index says {source.total_size} bytes, the shards hold {held_bytes} of several types "
            f"({listed}): they are of different releases, or a download is half done; download all of them again"
        )
    if source.total_size not in (None, held_bytes):
        logger.warning("%s: the index says %s bytes, the shards hold %d", path, source.total_size, held_bytes)


def _open_file(path: Path, name: str, component: str, key: str | None, prefixes: tuple[str, ...]) -> WeightsFile:
    held = Held(path)
    with held.stream() as stream:
        start = stream.read(512)
        # The low bytes of a header's length can be those of a pickle or a zip; what follows them cannot.
        if start[8:9] != b"{" and start[257:262] == b"ustar":
            raise BadInput(f"{path}: a tar file, perhaps of torch 0.1; re-save it with a current torch")
        if start[8:9] != b"{" and (start[:2] == b"PK" or start[:1] in (b"\x80", b"c", b"(")):
            return _open_pickle(held, name, component, key, prefixes)
        stream.seek(0)
        header, entries = read_header(stream, held.size, str(path))
    if (kind := metadata_of(header).get("format")) in TRANSPOSED:
        raise BadInput(
            f"{path}: stored by {TRANSPOSED[kind]} (format {kind!r}), whose kernels are transposed; load it there, and "
            "save it with PyTorch"
        )
    wrapper = shared_prefix(entries, tuple(prefix for prefix in prefixes if prefix in PREFIXES))
    infos = tuple(
        TensorInfo(key.removeprefix(wrapper), DTYPES[e["dtype"]], tuple(e["shape"]), len(header) + e["data_offsets"][0])
        for key, e in entries.items()
    )
    header = rewritten(header, wrapper) if wrapper else header
    return WeightsFile(name, header, infos, held, component, wrapper=wrapper)


def shared_prefix(names: Iterable[str], prefixes: tuple[str, ...]) -> str:
    """What all names begin with of the prefixes, one after the other."""
    found, names = "", [*names]
    while prefix := next((p for p in prefixes if all(name[len(found) :].startswith(p) for name in names)), ""):
        found += prefix
    return found


def _open_pickle(file: Held, name: str, component: str, key: str | None, prefixes: tuple[str, ...]) -> WeightsFile:
    """A torch file as the safetensors file that will be written of it."""
    path = file.path
    archive = open_archive(path, file)
    held = dict(sorted(_state_dict(archive, path, key, prefixes).items()))
    nbytes, size = sum(math.prod(t.shape) * t.dtype.itemsize for t in held.values()), file.size
    if nbytes > GROWTH * size:
        raise BadInput(f"{path}: has {size} bytes, and its tensors ask for {nbytes}; re-save it without expanded ones")
    header = make_header((name, t.dtype, t.shape_in_file) for name, t in held.items())
    infos, begin = [], len(header)
    for tensor_name, tensor in held.items():
        infos.append(TensorInfo(tensor_name, tensor.dtype, tensor.shape_in_file, begin))
        begin += infos[-1].nbytes
    place = Path(name).with_name(safetensors_name(Path(name).name))
    return WeightsFile(str(place), header, tuple(infos), file, component, held, archive.scripted)


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
    wrapper = shared_prefix(loaded, prefixes) if loaded else ""
    loaded = {name[len(wrapper) :]: tensor for name, tensor in loaded.items()}
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
