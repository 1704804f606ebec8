"""What a job reads: a model, the pairs that it may learn from, and the sets that it is measured on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ..calibration import CalibrationSet, Preservation, comes_without_pictures, image_paths, read_calibration
from ..errors import BadInput
from ..images import bad_images
from ..knowledge import DataSet, open_data_sets
from ..models import Model, load
from ..models.kept import Kept
from ..models.references import resolve
from ..processes import in_order, own_part, several
from ..schema import LARGEST, shown
from ..statistics.batches import BATCH_SIZE
from ..statistics.pixels import keep_images

BARE = ("arch", "quick_gelu", "preprocess")  # what is said of weights without a folder
OPENING = (*BARE, "key", "device", "dtype", "revision", "cache_dir", "offline")  # keywords of uwm.load
HUB = ("revision", "cache_dir", "offline")
CALIBRATION_SPLITS = ("calib", "train")
PART = 64  # images that one of several processes looks at in turn


@dataclass(frozen=True, kw_only=True)
class Opening:
    """Settings of a job that opens models.

    Attributes:
        key, device, dtype, revision, cache_dir, offline: As in `uwm.load`.
        batch_size, workers: As in `uwm.score`.
        limit: At most this many pairs or images.
        seed: Of every draw.
    """

    key: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    revision: str | None = None
    cache_dir: str | None = None
    offline: bool = False
    batch_size: int = BATCH_SIZE
    workers: int = 2
    limit: int | None = None
    seed: int = 0

    def opening(self) -> dict[str, Any]:
        """The keywords of `uwm.load`."""
        return {name: getattr(self, name) for name in OPENING}

    def opening_of(self, reference: str, among: Iterable[str | None]) -> dict[str, Any]:
        """The keywords of `uwm.load` for one of a job's models: `BARE` is not said of a folder beside a bare file.

        Args:
            reference: The model.
            among: The references of all of the job's models; None for one that was not given.
        """
        files = [other for other in among if other and Path(other).is_file()]
        others: dict[str, Any] = {} if reference in files or not files else dict.fromkeys(BARE)
        return {**self.opening(), **others}

    def hub(self) -> dict[str, Any]:
        """The settings with which a reference is looked up on the Hub."""
        return {name: getattr(self, name) for name in HUB}


@dataclass(frozen=True)
class Inputs(Opening):
    """The inputs of a job. The fields are flags of `uwm edit`, `uwm finetune` and `uwm compare`.

    Attributes:
        model, calib: References, as on the command line.
        safe_images, unsafe_images: As in `uwm.read_calibration`, for `calib` and `eval_set`.
        eval_set: The set to measure on; `calib` itself when only `eval_splits` is given.
        eval_splits: Splits to measure on, one table each. Without a set and a split, a `holdout` share of the pairs is
            measured on and not calibrated on; it shares no caption and no image with the others.
        strict: Refuse sets that are otherwise warned of, see `uwm.inputs.check_sets`.
        zero_shot, data_root, templates, ensemble: As in `uwm.knowledge.open_data_sets`.
    """

    model: str
    calib: str
    safe_images: str | None = None
    unsafe_images: str | None = None
    arch: str | None = None
    quick_gelu: bool | None = None
    preprocess: str | None = None
    split: str | None = None
    eval_set: str | None = None
    eval_splits: tuple[str, ...] = ()
    holdout: float = 0.2
    strict: bool = False
    zero_shot: tuple[str, ...] = ()
    data_root: str | None = None
    templates: str | None = None
    ensemble: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= LARGEST:
            raise BadInput(f"--seed {shown(self.seed)}: expected a whole number from 0 to {LARGEST}")


def input_paths(inputs: Inputs, preserve: str | None = None) -> list[Path]:
    """What a job reads, so that no output goes over or into it; the model's path comes first. Raises as `resolve`."""
    model = resolve(inputs.model, **inputs.hub())
    sets = (inputs.calib, inputs.eval_set, inputs.safe_images, inputs.unsafe_images, inputs.data_root, preserve)
    others = (*sets, *inputs.zero_shot, inputs.templates, inputs.preprocess)
    return [model, *(Path(path) for path in others if path)]


def load_model(inputs: Inputs, keep: bool = False, reads: CalibrationSet | None = None) -> Model:
    """`uwm.load` with the job's settings.

    Args:
        inputs: The settings.
        keep: Of the model's work what fits, where it is measured again and again.
        reads: Pairs that will go through it: what reads captions and images is checked before the weights are loaded.
    """
    pairs = () if reads is None else reads.pairs
    there = {"text": any(pair.has_text for pair in pairs), "vision": any(pair.has_image for pair in pairs)}
    model = load(inputs.model, **inputs.opening(), reads=[kind for kind, is_there in there.items() if is_there])
    model.kept = Kept() if keep else None
    return model


def calibration_pairs(inputs: Inputs) -> CalibrationSet:
    """The pairs of the job's split; by default of the calibration split, where the set has one."""
    whole = _read_set(inputs, inputs.calib)
    split = inputs.split or next((name for name in CALIBRATION_SPLITS if name in whole.splits()), None)
    return (whole.split(split) if split else whole).limit(inputs.limit, inputs.seed)


def _read_set(inputs: Inputs, path: str) -> CalibrationSet:
    """Read a set; of two sets, the image folders belong to those that come without images."""
    if inputs.eval_set and not comes_without_pictures(path):
        return read_calibration(path)
    return read_calibration(path, safe_images=inputs.safe_images, unsafe_images=inputs.unsafe_images)


def read_sets(inputs: Inputs) -> tuple[CalibrationSet, dict[str, CalibrationSet]]:
    """The calibration pairs, and the sets to measure on by name; they share no pair."""
    calibration = calibration_pairs(inputs)
    if not inputs.eval_set and not inputs.eval_splits:
        calibration, held = calibration.holdout(inputs.holdout, inputs.seed)
        return calibration, {"held-out": held}
    other = _read_set(inputs, inputs.eval_set or inputs.calib)
    held_out = {name: other.split(name) for name in inputs.eval_splits} or {other.name: other}
    used = {pair.content(calibration.hashed) for pair in calibration.pairs}
    for name, held in held_out.items():
        if any(pair.content(held.hashed) in used for pair in held.pairs):
            raise BadInput(f"evaluation set {name!r} holds pairs that calibration uses; choose another --eval-split")
    return calibration, {name: held.limit(inputs.limit, inputs.seed) for name, held in held_out.items()}


def refuse_bad_images(
    sets: list[CalibrationSet], workers: int, preserve: Preservation | None = None, model: Model | None = None
) -> None:
    """Refuse sets with images that cannot be read, all of them at once; a model keeps what it can. Raises BadInput."""
    kept = preserve.images if preserve else ()
    paths = [*dict.fromkeys([*(path for pairs in sets for path in image_paths(pairs.pairs)), *kept])]
    if several():  # each looks at a part; what it keeps are the images of its batches, when they come
        parts = own_part([paths[start : start + PART] for start in range(0, len(paths), PART)])
        bad = [*chain.from_iterable(in_order((bad_images(part, workers) for part in parts), "images"))]
    else:
        bad = bad_images(paths, workers) if model is None else keep_images(model, paths, workers)
    if bad:
        more = f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise BadInput(f"{len(bad)} bad image{'s' if len(bad) > 1 else ''}: " + "; ".join(bad[:5]) + more)


def read_data_sets(inputs: Inputs) -> dict[str, DataSet]:
    """The zero-shot data sets by name."""
    return open_data_sets(
        inputs.zero_shot, data_root=inputs.data_root, templates=inputs.templates, ensemble=inputs.ensemble
    )
