"""Which files of a folder are the weights to edit, and what else belongs to them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import BadInput, Refused

CANDIDATES = (  # in this order; a pickle only when there is nothing better
    "model.safetensors", "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.fp16.safetensors",
    "pytorch_model.bin", "open_clip_pytorch_model.bin",
)  # fmt: skip
WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx"}
OWN = {"uwm.json", "README.md", "report.html", "uwm_patch.safetensors"}
FORMATS = {"onnx", "openvino"}  # folders with unedited copies in other formats
EXPORTS = {"hf", "open_clip"}  # in a folder of ours, what --also-export wrote


@dataclass(frozen=True)
class Source:
    """Weight files as (path, name relative to the folder, component), and what goes with them."""

    files: list[tuple[Path, str, str]]
    side_files: tuple[Path, ...] = ()
    promised: dict[Path, set[str]] = field(default_factory=dict)  # shard -> the tensors its index promises
    index: tuple[str, bytes] | None = None


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
        found = _one_folder(path, "")
        return Source(found.files, tuple(_side_files(path, path)), found.promised, found.index)
    found = _one_folder(inner, f"{inner.relative_to(path).as_posix()}/")
    return Source(found.files, tuple(_side_files(path, inner)), found.promised, found.index)


def _pipeline(path: Path) -> Source:
    folders = [p for p in sorted(path.glob("text_encoder*")) if (p / "config.json").is_file()]
    folders = [p for p in folders if str(read_json(p / "config.json").get("model_type", "")).startswith("clip")]
    if not folders:
        raise BadInput(
            f"{path}: a diffusers pipeline without a CLIP text encoder (no text_encoder*/config.json of CLIP)"
        )
    found = [_one_folder(folder, f"{folder.name}/") for folder in folders]
    if any(part.index is not None for part in found):
        raise BadInput(f"{path}: text encoders in shards are not supported; save them in one file each")
    files = [(place, name, f"{folder.name}/") for folder, part in zip(folders, found, strict=True) for place, name, _ in part.files]  # noqa: E501  # fmt: skip
    return Source(files, tuple(_side_files(path, *folders)))


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
    for pattern in ("*.safetensors.index.json", "*.bin.index.json"):
        for index in sorted(folder.glob(pattern)):
            return _shards(index, prefix)
    for name in CANDIDATES:
        if (folder / name).is_file():
            return Source([(folder / name, prefix + name, "")])
    partial = " (a download seems unfinished: .incomplete)" if any(folder.glob("*.incomplete")) else ""
    raise BadInput(f"{folder}: no weights in this folder{partial}; expected one of {', '.join(CANDIDATES)} or an index")


def _shards(index: Path, prefix: str) -> Source:
    """The shard files of an index, checked to lie in the index's own folder."""
    try:
        content = json.loads(index.read_text("utf-8-sig"))
        weight_map = content["weight_map"]
        names = sorted(set(weight_map.values()))
        if not all(isinstance(name, str) for name in names):
            raise ValueError("a shard's name is no text")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise BadInput(f"{index}: not a shard index ({error})") from None
    suffix = ".safetensors" if index.name.endswith(".safetensors.index.json") else ".bin"
    for name in names:
        if not re.fullmatch(rf"[\w.\-]+{re.escape(suffix)}", name):
            raise Refused(f"{index}: shard name {name!r} is not a plain {suffix} file name in this folder")
        if not (index.parent / name).is_file():
            raise BadInput(f"{index}: shard {name!r} is missing; download it again")
    promised: dict[Path, set[str]] = {}
    for tensor, name in weight_map.items():
        promised.setdefault(index.parent / name, set()).add(tensor)
    written = None
    if suffix == ".bin":
        renamed = {t: re.sub(r"^pytorch_model", "model", n.removesuffix(".bin")) + ".safetensors" for t, n in weight_map.items()}  # noqa: E501  # fmt: skip
        text = json.dumps({**content, "weight_map": renamed}, indent=2) + "\n"
        written = (f"{prefix}model.safetensors.index.json", text.encode())
    return Source([(index.parent / name, prefix + name, "") for name in names], (), promised, written)


def _side_files(root: Path, *edited: Path) -> Iterator[Path]:
    """What an edited copy takes along: everything but hidden files, our own outputs and the edited folders' weights.

    Weights elsewhere belong to other parts of a pipeline; beside a single model they are unedited copies of it.
    """
    for path in sorted(root.rglob("*")):
        place = path.relative_to(root)
        hidden = any(part.startswith(".") for part in place.parts)
        exported = place.parts[0] in EXPORTS and (root / "uwm.json").is_file()
        if not path.is_file() or hidden or exported or (path.name in OWN and path.parent == root):
            continue
        weights = path.suffix in WEIGHT_SUFFIXES or path.name.endswith(".bin.index.json")
        ours = path.parent in edited or root in edited or FORMATS.intersection(place.parts)
        if not (weights and ours):
            yield place


def read_json(path: Path) -> Any:
    """A JSON file's content. Raises BadInput."""
    try:
        return json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise BadInput(f"{path.parent}: no {path.name} in this folder") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not valid JSON ({error})") from None
