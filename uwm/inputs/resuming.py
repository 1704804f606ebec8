"""Let a run that is stopped be gone on with: its work is kept under a key over all that decides it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import PIL
import torch

from ..calibration import CalibrationSet, Preservation
from ..checkpoint import file_sha256
from ..knowledge import DataSet
from ..models import Model
from ..report import versions
from ..stages import note
from ..unfinished import Unfinished
from .fingerprints import content_or_tag, data_set_fingerprint

FORMAT = 1  # raise it when a pass sums up otherwise, or embeddings are made in another way
SIDE_FILES = {".json", ".txt", ".model", ".jinja"}  # what says how weights are used, and the tokenizer's files
NO_MATTER = ("workers", "cache")  # settings on which no bit hangs
GOES_ON = "going on with what an earlier run of the same command has done; --no-cache begins anew"


def keep_work(
    verb: str,
    settings: Mapping[str, Any],
    model: Model,
    sets: Iterable[CalibrationSet],
    data_sets: Iterable[DataSet] = (),
    preserve: Preservation | None = None,
    progress: Any = None,
) -> Unfinished | None:
    """Keep what the model does in the user's cache, and go on with what an earlier run of the same kept.

    The same run has the same verb, settings, files of the model, contents of the sets, versions, device and number of
    threads. Without a checkpoint nothing is kept.

    Args:
        verb: Of the run, and where it has several models which of them.
        settings: As they were given.
        model: What it does is kept from now on.
        sets, data_sets, preserve: What goes through it.
        progress: Is told where the run goes on.

    Returns:
        What is kept, for `work_is_done`; None where nothing is.
    """
    if model.checkpoint is None:
        return None
    about = {name: value for name, value in settings.items() if name not in NO_MATTER}
    for name in ("preprocess", "templates"):
        about[name] = content_or_tag(settings[name]) if settings.get(name) else None
    about |= {
        "verb": verb,
        "versions": versions() | {"pillow": PIL.__version__},
        "device": str(model.device),
        "dtype": str(model.dtype),
    }
    about |= {"threads": torch.get_num_threads(), "processor": torch.backends.cpu.get_cpu_capability()}
    about |= {"files": model.checkpoint.file_hashes() | _side_files(model.checkpoint.path)}
    about |= {"sets": [pairs.fingerprint() for pairs in sets], "data_sets": [*map(_pictures, data_sets)]}
    about["preserved"] = None if preserve is None else preserve.fingerprint()
    run = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()
    model.unfinished = Unfinished.of(run)
    if model.unfinished is not None and model.unfinished.goes_on:
        note(progress, GOES_ON)
    return model.unfinished


def work_is_done(*work: Unfinished | None) -> None:
    """Remove what was kept: the run has come to its end."""
    for kept in work:
        if kept is not None:
            kept.remove()


def _side_files(path: Path) -> dict[str, str]:
    found = sorted(path.rglob("*")) if path.is_dir() else []
    return {f.relative_to(path).as_posix(): file_sha256(f) for f in found if f.suffix in SIDE_FILES and f.is_file()}


def _pictures(data: DataSet) -> list[Any]:
    """What decides the figures of a data set, with the times at which its files were written."""
    files = [Path(path) for path, *_ in getattr(data.pictures, "samples", [])]
    return [*data_set_fingerprint(data), [file.stat().st_mtime_ns for file in files]]
