"""What decides figures, as far as it is known before a model is loaded: for keys of results that are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..checkpoint import file_sha256, open_checkpoint
from ..knowledge import DataSet
from ..outputs import MANIFEST


def model_files(path: Path) -> dict[str, str]:
    """sha256 of a checkpoint's weights and of the JSON files that say how they are used."""
    weights = open_checkpoint(path).file_hashes()
    configs = sorted(path.rglob("*.json")) if path.is_dir() else []
    return weights | {file.relative_to(path).as_posix(): file_sha256(file) for file in configs if file.name != MANIFEST}


def content_or_tag(preprocess: str) -> str:
    """A tag, or what a file holds."""
    path = Path(preprocess)
    return path.read_text("utf-8", "replace") if path.is_file() else preprocess


def device_name(name: str) -> str:
    """The device that ``auto`` stands for here."""
    return "cuda" if name == "auto" and torch.cuda.is_available() else name


def data_set_fingerprint(data: DataSet) -> list[Any]:
    """What decides the figures of a data set, as far as it is known without reading its images."""
    files = getattr(data.pictures, "samples", [])
    listed = [[Path(path).name, target, Path(path).stat().st_size] for path, target in files]
    return [data.name, len(data), data.class_names, data.templates, sorted(data.unsafe_classes), listed]
