"""Which files of a folder are the weights to edit, and what else belongs to them."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import BadInput, Refused
from ..outputs import MANIFEST, OWN
from .adapters import refuse_adapter_beside
from .containment import demand_contained, is_contained
from .json_files import read_json

INDEX = "model.safetensors.index.json"
CANDIDATES = (  # in this order, then any other index; a pickle only when there is nothing better
    "model.safetensors", INDEX, "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors",
    "model.fp16.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin",
)  # fmt: skip
WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx"}
SHARD_INDEX = re.compile(r"(.*)(\.safetensors|\.bin)\.index(\.\w+)?\.json")  # stem, suffix, variant as .fp16
OTHER_FORMATS = {"onnx", "openvino"}  # folders with unedited copies in other formats
EXPORTS = {"hf", "open_clip"}  # in a folder of ours, what --also-export wrote

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Weight files as (path, name relative to the folder, component), and what goes with them."""

    files: list[tuple[Path, str, str]]
    side_files: tuple[Path, ...] = ()
    promised: dict[Path, set[str]] = field(default_factory=dict)  # shard -> the tensors its index promises
    indices: tuple[tuple[str, bytes], ...] = ()  # to write: name relative to the folder, content
    total_size: int | None = None  # bytes in all shards, as the index says
    left_out: dict[Path, list[Path]] = field(default_factory=dict)  # folder -> weights in it that are not read


def find_sources(path: Path) -> Source:
    """Weight files and side files of a file or folder.

    A folder is one model (Hugging Face, open_clip), a sentence-transformers model, whose first module is the model, or
    a diffusers pipeline, whose text encoders are its components.

    Raises:
        BadInput: No weights here, or an index that does not hold. Refused: A shard outside of its folder.
    """
    if path.is_file():
        return Source([(path, path.name, "")])
    if not path.is_dir():
        raise BadInput(f"{path}: no such file or folder" if not path.exists() else f"{path}: not a regular file")
    if (path / "model_index.json").is_file():
        return _pipeline(path)
    inner = _first_module(path) if (path / "modules.json").is_file() else path
    if inner == path:
        return replace(_one_folder(path, ""), side_files=tuple(_side_files(path, path)))
    found = _one_folder(inner, f"{inner.relative_to(path).as_posix()}/")
    return replace(found, side_files=tuple(_side_files(path, inner)))


def _pipeline(path: Path) -> Source:
    folders = [p for p in sorted(path.glob("text_encoder*")) if (p / "config.json").is_file()]
    folders = [p for p in folders if str(read_json(p / "config.json").get("model_type", "")).startswith("clip")]
    if not folders:
        raise BadInput(
            f"{path}: a diffusers pipeline without a CLIP text encoder (no text_encoder*/config.json of CLIP)"
        )
    found = [_one_folder(folder, f"{folder.name}/") for folder in folders]
    files = [(place, name, f"{folder.name}/") for folder, part in zip(folders, found, strict=True) for place, name, _ in part.files]  # noqa: E501  # fmt: skip
    promised = {place: names for part in found for place, names in part.promised.items()}
    indices = tuple(index for part in found for index in part.indices)
    left_out = {place: others for part in found for place, others in part.left_out.items()}
    return Source(files, tuple(_side_files(path, *folders)), promised, indices, left_out=left_out)


def _first_module(path: Path) -> Path:
    """The folder of a sentence-transformers model's first module, which holds the encoders."""
    modules = read_json(path / "modules.json")
    place = (
        modules[0].get("path", "") if isinstance(modules, list) and modules and isinstance(modules[0], dict) else None
    )
    if not isinstance(place, str) or not re.fullmatch(r"[\w\-]*", place):
        raise BadInput(f"{path / 'modules.json'}: names no folder for its first module")
    return path / place if place and any((path / place).glob("*")) else path


def _one_folder(folder: Path, prefix: str) -> Source:
    refuse_adapter_beside(folder)
    indices = [folder / name for name, _, _ in shard_indices(path.name for path in folder.iterdir())]
    ranked = [path for path in (*(folder / name for name in CANDIDATES), *indices) if path.is_file()]
    ranked.sort(key=lambda path: ".safetensors" not in path.name)
    if not ranked:
        there = ", ".join(CANDIDATES)
        raise BadInput(f"{folder}: no weights in this folder{_unfinished(folder)}; expected one of {there}")
    sharded = SHARD_INDEX.fullmatch(ranked[0].name)
    found = _shards(ranked[0], prefix) if sharded else Source([(ranked[0], prefix + ranked[0].name, "")])
    read = {ranked[0], *(place for place, _, _ in found.files)}
    others = [p for p in sorted(folder.iterdir()) if p.is_file() and p.suffix in WEIGHT_SUFFIXES and p not in read]
    others = [path for path in others if path.name not in OWN and not path.name.startswith(".")]
    return replace(found, left_out={folder: others} if others else {})


def shard_indices(names: Iterable[str]) -> list[tuple[str, str, str]]:
    """The shard indices among file names, variants last: the name, the shards' suffix, a pattern of their names."""
    found = sorted((m[3] or "", m[0], m[1], m[2]) for m in map(SHARD_INDEX.fullmatch, names) if m)
    return [
        (name, suffix, rf"{re.escape(stem)}({v}-\d+-of-\d+|-\d+-of-\d+{v})\.\w+")
        for variant, name, stem, suffix in found
        for v in [re.escape(variant)]
    ]


def _unfinished(folder: Path) -> str:
    return " (a download seems unfinished: .incomplete)" if any(folder.glob("*.incomplete")) else ""


def _shards(index: Path, prefix: str) -> Source:
    """The shard files of an index, checked to lie in the index's own folder."""
    content = _read_index(index)
    _, suffix, _ = shard_indices([index.name])[0]
    promised: dict[Path, set[str]] = {}
    for tensor, name in content["weight_map"].items():
        promised.setdefault(index.parent / name, set()).add(tensor)
    for shard in promised:
        _check_shard(index, shard.name if shard.parent == index.parent else str(shard), suffix)
    stray = sorted(p.name for p in index.parent.glob(f"*-of-*{suffix}") if p not in promised)
    if stray:
        logger.warning("%s: left out, for the index does not name them: %s", index, ", ".join(stray))
    files = sorted(promised)
    written = index.name, index.read_bytes()
    if suffix == ".bin":
        renamed = {t: safetensors_name(n) for t, n in content["weight_map"].items()}
        if len(set(renamed.values())) < len(files):
            raise BadInput(f"{index}: two shards would get one name as safetensors; rename one of them")
        written = INDEX, (json.dumps({**content, "weight_map": renamed}, indent=2) + "\n").encode()
    places = [(path, prefix + path.name, "") for path in files]
    metadata = content.get("metadata")
    total = metadata.get("total_size") if suffix == ".safetensors" and isinstance(metadata, dict) else None
    return Source(places, (), promised, ((prefix + written[0], written[1]),), total)


def safetensors_name(name: str) -> str:
    """What a torch file is called once its tensors are written as safetensors."""
    return re.sub(r"^pytorch_model", "model", str(Path(name).with_suffix(".safetensors")))


def _read_index(index: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key stands there twice")
        return dict(pairs)

    try:
        content = json.loads(index.read_text("utf-8-sig"), object_pairs_hook=unique)
        if not content["weight_map"] or not all(isinstance(name, str) for name in content["weight_map"].values()):
            raise ValueError("weight_map does not say where tensors are")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise BadInput(f"{index}: not a shard index ({error})") from None
    return content


def _check_shard(index: Path, name: str, suffix: str) -> None:
    """A shard is a file in the index's folder. Raises Refused where it is elsewhere, BadInput where it is missing."""
    if not re.fullmatch(rf"[\w.\-]+{re.escape(suffix)}", name):
        raise Refused(f"{index}: shard name {name!r} is not a plain {suffix} file name in this folder")
    path = index.parent / name
    if not path.is_file():
        raise BadInput(f"{index}: shard {name!r} is missing{_unfinished(index.parent)}; download it again")
    if not is_contained(path, index.parent):
        raise Refused(f"{index}: shard {name!r} is a link that leaves this folder; put the file itself there")


def check_written(path: Path, exported: str | None = None) -> None:
    """Refuse, before the work, a model of which an edited copy cannot be written.

    Args:
        path: The file or folder.
        exported: The sub-folder that will hold the model in another layout.

    Raises:
        BadInput: A shard or a folder in it has the name of a file that we write beside the weights.
        Refused: A side file is a link out of the folder, which would be copied into the output.
    """
    source = find_sources(path)
    if not path.is_dir():
        return
    weights = [safetensors_name(name) if name.endswith(".bin") else name for _, name, _ in source.files]
    for name in (*weights, *map(str, source.side_files)):
        first = Path(name).parts[0]
        if first in OWN or first == exported:
            raise BadInput(f"{path}: {name} has a name under which uwm writes beside the weights; rename {first}")
    for place in source.side_files:
        demand_contained(path / place, path)


def _side_files(root: Path, *edited: Path) -> Iterator[Path]:
    """What an edited copy takes along: everything but hidden files, our own outputs and the edited folders' weights.

    Weights elsewhere belong to other parts of a pipeline; beside a single model they are unedited copies of it.
    """
    for path in sorted(root.rglob("*")):
        place = path.relative_to(root)
        hidden = any(part.startswith(".") for part in place.parts)
        exported = place.parts[0] in EXPORTS and (root / MANIFEST).is_file()
        if not path.is_file() or hidden or exported or (path.name in OWN and path.parent == root):
            continue
        weights = path.suffix in WEIGHT_SUFFIXES or SHARD_INDEX.fullmatch(path.name)
        ours = path.parent in edited or root in edited or OTHER_FORMATS.intersection(place.parts)
        if not (weights and ours):
            yield place
