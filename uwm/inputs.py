"""What every job reads and measures: a model, the pairs it may learn from, and the sets that it is judged on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .calibration import CalibrationSet, comes_without_pictures, image_paths, read_calibration
from .checkpoint import MANIFEST, check_output
from .clock import Clock
from .errors import BadInput
from .evaluation import EvalResult, evaluate
from .images import bad_images
from .knowledge import DataSet, open_data_sets
from .models import Model, load
from .models.references import commit_of, hub_name, name_of, resolve
from .records import to_json
from .report import Example, html_report, model_card, paired_differences, versions
from .statistics.batches import BATCH_SIZE, Progress

FORMAT = 1
FEW_PAIRS = 16
CALIBRATION_SPLITS = ("calib", "train")


@dataclass(frozen=True)
class Inputs:
    """What a job reads. The fields are flags of `uwm edit`, `uwm finetune` and `uwm compare`.

    Attributes:
        model, calib: References, as on the command line.
        safe_images, unsafe_images: As in `uwm.read_calibration`, for `calib` and `eval_set`.
        eval_set: Where to measure; the calibration set's own folder when only `eval_splits` is given.
        eval_splits: Splits to measure on, a table each. With neither, a `holdout` share of the pairs is kept aside.
        zero_shot, data_root, templates, ensemble: As in `uwm.knowledge.open_data_sets`.
    """

    model: str
    calib: str
    safe_images: str | None = None
    unsafe_images: str | None = None
    arch: str | None = None
    quick_gelu: bool | None = None
    key: str | None = None
    split: str | None = None
    eval_set: str | None = None
    eval_splits: tuple[str, ...] = ()
    holdout: float = 0.2
    zero_shot: tuple[str, ...] = ()
    data_root: str | None = None
    templates: str | None = None
    ensemble: bool = False
    limit: int | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    revision: str | None = None
    cache_dir: str | None = None
    offline: bool = False
    batch_size: int = BATCH_SIZE
    workers: int = 2

    def hub(self) -> dict[str, Any]:
        """Where on the Hub a reference is looked up."""
        return {"revision": self.revision, "cache_dir": self.cache_dir, "offline": self.offline}


def check_paths(inputs: Inputs, output: Path | None, overwrite: bool) -> Path:
    """The model's path; refuse an output that is or holds what the job reads, before anything is read."""
    model = resolve(inputs.model, **inputs.hub())
    if output is not None:
        sets = (inputs.calib, inputs.eval_set, inputs.safe_images, inputs.unsafe_images, inputs.data_root)
        check_output(output, [model, *(Path(p) for p in (*sets, *inputs.zero_shot) if p)], overwrite)
    return model


def load_model(inputs: Inputs) -> Model:
    """`uwm.load` with the job's settings."""
    return load(
        inputs.model,
        arch=inputs.arch,
        quick_gelu=inputs.quick_gelu,
        key=inputs.key,
        device=inputs.device,
        dtype=inputs.dtype,
        **inputs.hub(),
    )


def calibration_pairs(inputs: Inputs) -> CalibrationSet:
    """All pairs that the job may calibrate on: its split, or the calibration split where the set has one."""
    whole = _read_set(inputs, inputs.calib)
    split = inputs.split or next((name for name in CALIBRATION_SPLITS if name in whole.splits()), None)
    return (whole.split(split) if split else whole).limit(inputs.limit, inputs.seed)


def _read_set(inputs: Inputs, path: str) -> CalibrationSet:
    """A set; where there are two, the folders of pictures are for those that come without."""
    if inputs.eval_set and not comes_without_pictures(path):
        return read_calibration(path)
    return read_calibration(path, safe_images=inputs.safe_images, unsafe_images=inputs.unsafe_images)


def read_sets(inputs: Inputs) -> tuple[CalibrationSet, dict[str, CalibrationSet]]:
    """The calibration pairs, and by name the sets to measure on; they share no pair."""
    calibration = calibration_pairs(inputs)
    if not inputs.eval_set and not inputs.eval_splits:
        calibration, held = calibration.holdout(inputs.holdout, inputs.seed)
        return calibration, {"held-out": held}
    other = _read_set(inputs, inputs.eval_set or inputs.calib)
    held_out = {name: other.split(name) for name in inputs.eval_splits} or {other.root.resolve().name: other}
    used = {pair.content() for pair in calibration.pairs}
    for name, held in held_out.items():
        if any(pair.content() in used for pair in held.pairs):
            raise BadInput(f"evaluation set {name!r} holds pairs that calibration uses; choose another --eval-split")
    return calibration, {name: held.limit(inputs.limit, inputs.seed) for name, held in held_out.items()}


def refuse_bad_images(sets: list[CalibrationSet], workers: int) -> None:
    """Before the model is loaded: name every picture that cannot be read, at once."""
    if bad := bad_images([path for pairs in sets for path in image_paths(pairs.pairs)], workers):
        more = f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise BadInput(f"{len(bad)} bad pictures: " + "; ".join(bad[:5]) + more)


def read_data_sets(inputs: Inputs) -> dict[str, DataSet]:
    """The zero-shot data sets by name."""
    return open_data_sets(
        inputs.zero_shot, data_root=inputs.data_root, templates=inputs.templates, ensemble=inputs.ensemble
    )


def measure(
    inputs: Inputs,
    columns: Iterable[tuple[str, AbstractContextManager[Model]]],
    held_out: Mapping[str, CalibrationSet],
    data_sets: Mapping[str, DataSet],
    progress: Progress | None,
) -> dict[str, dict[str, EvalResult]]:
    """Set -> column -> result; zero-shot data sets are measured with the first set.

    Args:
        inputs: Batch size, workers and seed.
        columns: Name -> a model, in the state to measure while its block runs.
        held_out: What to measure on; sets without a pair of captions and pictures are left out.
    """
    sets = {name: pairs for name, pairs in held_out.items() if any(p.has_text and p.has_image for p in pairs.pairs)}
    results: dict[str, dict[str, EvalResult]] = {name: {} for name in sets}
    for column, state in columns:
        with state as model:
            if len(model.modalities) < 2:
                return {}
            for number, (name, pairs) in enumerate(sets.items()):
                results[name][column] = evaluate(
                    model,
                    pairs,
                    data_sets=data_sets if number == 0 else None,
                    batch_size=inputs.batch_size,
                    workers=inputs.workers,
                    seed=inputs.seed,
                    progress=progress,
                )
    return results


def told_settings(inputs: Inputs, model: Path) -> dict[str, Any]:
    """The settings as files tell them, without this machine's paths; `model` is where the reference leads to."""
    settings = asdict(inputs) | {"model": name_of(inputs.model, model), "revision": commit_of(model) or inputs.revision}
    settings |= dict.fromkeys(("cache_dir", "data_root", "safe_images", "unsafe_images"))
    settings |= {key: Path(settings[key]).resolve().name for key in ("calib", "eval_set", "templates") if settings[key]}
    return settings | {"zero_shot": [Path(folder).name for folder in inputs.zero_shot]}


def told_results(results: Mapping[str, Mapping[str, EvalResult]], seed: int) -> dict[str, Any]:
    """What uwm.json says of the figures: them, and their paired differences."""
    return {
        "results": {n: {column: r.as_dict() for column, r in columns.items()} for n, columns in results.items()},
        "differences": {n: paired_differences(columns, seed) for n, columns in results.items()},
    }


def describe(inputs: Inputs, model: Model, calibration: CalibrationSet, pairs: Any, sha256: str) -> dict[str, Any]:
    """What uwm.json says of a job's inputs: versions, settings, model, calibration set."""
    assert model.checkpoint is not None
    settings = told_settings(inputs, model.checkpoint.path)
    return {
        "format": FORMAT,
        "versions": versions(),
        "settings": settings,
        "model": {
            "name": settings["model"],
            "base_model": hub_name(inputs.model),
            "layout": model.layout.name,
            "library": model.layout.library,
            "quick_gelu": model.quick_gelu,
            "sha256": model.checkpoint.file_hashes(),
        },
        "calibration": {
            "name": calibration.root.resolve().name,
            "pairs": pairs,
            "skipped": calibration.skipped | calibration.missing(),
            "sha256": sha256,
        },
    }


def write_papers(
    folder: Path, manifest: dict[str, Any], results: Mapping, clock: Clock, examples: Sequence[Example] = ()
) -> None:
    """What lies beside the weights: the model card, the page, and uwm.json."""
    (folder / "README.md").write_text(model_card(manifest, results), "utf-8")
    (folder / "report.html").write_text(html_report(manifest, examples), "utf-8")
    (folder / MANIFEST).write_text(to_json({**manifest, "run": clock.report()}) + "\n", "utf-8")


def warnings(
    calibration: CalibrationSet, held_out: Mapping, results: Mapping, data_sets: Mapping[str, DataSet]
) -> Iterator[str]:
    """What a user should know of the sets, a line each."""
    if not results:
        yield "nothing was measured: SafeGround needs captions and pictures, and a model with both towers"
    if len(calibration) < FEW_PAIRS:
        yield f"only {len(calibration)} calibration pairs; scores from fewer than {FEW_PAIRS} are mostly noise"
    yield from calibration.warnings()
    for name, pairs in held_out.items():
        yield from (f"{name}: {line}" for line in replace(pairs, skipped={}).warnings())
    yield from (note for data in data_sets.values() for note in data.odd)
