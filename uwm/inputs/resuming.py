"""Let a run that is stopped be gone on with: its work is kept under a key over all that decides it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..cache import PROBE_TEXTS
from ..calibration import CalibrationSet, Preservation
from ..checkpoint import Checkpoint, file_sha256
from ..clock import Clock
from ..errors import BadInput
from ..knowledge import DataSet
from ..models import Model
from ..stages import note
from ..unfinished import Unfinished
from .fingerprints import content_or_tag, data_set_fingerprint
from .surroundings import surroundings

SIDE_FILE = 64 << 20  # bytes: configs and tokenizers are smaller
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

    The same run has the same verb, settings, files of the model and contents of the sets, and the same `surroundings`.
    Without a checkpoint nothing is kept.

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
    sets, data_sets = [*sets], [*data_sets]
    reads_text = bool(data_sets or preserve) or any(pair.has_text for pairs in sets for pair in pairs.pairs)
    about = {name: value for name, value in settings.items() if name not in NO_MATTER}
    for name in ("preprocess", "templates"):
        about[name] = content_or_tag(settings[name]) if settings.get(name) else None
    about |= {"verb": verb, "dtype": str(model.dtype), "around": surroundings(settings, model.device)}
    about |= {"files": model.checkpoint.file_hashes() | _side_files(model.checkpoint), "module": str(model.module)}
    about |= {"sets": [pairs.fingerprint() for pairs in sets], "data_sets": [*map(_pictures, data_sets)]}
    about["tokens"] = _tokens(model) if reads_text else None
    about["preserved"] = None if preserve is None else preserve.fingerprint()
    model.unfinished = unfinished_of(about, progress)
    return model.unfinished


def unfinished_of(about: Mapping[str, Any], progress: Any = None) -> Unfinished | None:
    """Where a run keeps its work that all of this decides; `progress` is told where it goes on."""
    found = Unfinished.of(hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest())
    if found is not None and found.goes_on:
        note(progress, GOES_ON)
    return found


def how_it_ran(model: Model, clock: Clock) -> dict[str, Any]:
    """`Clock.report`, and `went_on` where an earlier run of the same had done some of the work: then of the rest."""
    kept = model.unfinished
    return clock.report() | ({"went_on": True} if kept is not None and kept.goes_on else {})


def work_is_done(*work: Unfinished | None) -> None:
    """Remove what was kept: the run has come to its end."""
    for kept in work:
        if kept is not None:
            kept.remove()


def _side_files(checkpoint: Checkpoint) -> dict[str, str]:
    """Of every side file that says how weights are used, and of parts of a pipeline, see `hash_or_size`."""
    return {name.as_posix(): hash_or_size(checkpoint.path / name) for name in checkpoint.side_files}


def hash_or_size(path: Path) -> str:
    """The sha256 of a file; of a large one its size and when it was written."""
    about = path.stat()
    return file_sha256(path) if about.st_size <= SIDE_FILE else f"{about.st_size} {about.st_mtime_ns}"


def _tokens(model: Model) -> list[Any] | None:
    """What the tokenizer makes of two texts: some text towers have it from elsewhere than the checkpoint's folder."""
    try:
        return [part.tolist() for part in model.tokenize(PROBE_TEXTS)]
    except BadInput:
        return None  # the job needs none, or refuses it in its own words


def _pictures(data: DataSet) -> list[Any]:
    """What decides the figures of a data set: sizes and times of its files, whose content would take long to read."""
    return [*data_set_fingerprint(data), [] if data.place is None else [*_listed(data.place)]]


def _listed(place: Path) -> Iterator[list[Any]]:
    """Name, size and time of every file below a folder, sorted."""
    for folder, inner, names in os.walk(place, followlinks=True):
        inner.sort()
        for path in (Path(folder, name) for name in sorted(names)):
            with contextlib.suppress(OSError):  # a link to nothing
                about = path.stat()
                yield [path.relative_to(place).as_posix(), about.st_size, about.st_mtime_ns]
