"""Describe what a job read and measured: uwm.json, the model card, the page, warnings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..calibration import CalibrationSet
from ..clock import Clock
from ..evaluation import EvalResult
from ..knowledge import DataSet
from ..manifest import FORMAT, Manifest, write_manifest
from ..models import Model
from ..models.references import commit_of, hub_name, name_of
from ..report import Example, html_report, model_card, paired_differences, versions
from .reading import Inputs

LEAST_CALIBRATION_PAIRS = 16  # scores from fewer are mostly noise


def public_settings(inputs: Inputs, model: Path) -> dict[str, Any]:
    """The settings without the paths of this machine; `model` is the path behind the reference."""
    settings = asdict(inputs) | {"model": name_of(inputs.model, model), "revision": commit_of(model) or inputs.revision}
    settings |= dict.fromkeys(("cache_dir", "data_root", "safe_images", "unsafe_images"))
    named = ("calib", "eval_set", "templates", "preserve")
    settings |= {key: Path(settings[key]).resolve().name for key in named if settings.get(key)}
    return settings | {"zero_shot": [Path(folder).name for folder in inputs.zero_shot]}


def describe_results(results: Mapping[str, Mapping[str, EvalResult]], seed: int) -> Manifest:
    """The figures and their paired differences, for uwm.json."""
    return {
        "results": {n: {column: r.as_dict() for column, r in columns.items()} for n, columns in results.items()},
        "differences": {n: paired_differences(columns, seed) for n, columns in results.items()},
    }


def describe_inputs(inputs: Inputs, model: Model, calibration: CalibrationSet, pairs: Any, sha256: str) -> Manifest:
    """Versions, settings, model and calibration set, for uwm.json."""
    assert model.checkpoint is not None
    settings = public_settings(inputs, model.checkpoint.path)
    return {
        "format": FORMAT,
        "versions": versions(),
        "settings": settings,
        "model": {
            "name": settings["model"],
            "base_model": hub_name(inputs.model),
            "layout": model.described,
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


def write_documents(
    folder: Path, manifest: Manifest, results: Mapping, clock: Clock, examples: Sequence[Example] = ()
) -> None:
    """Write the model card, the page and uwm.json beside the weights."""
    (folder / "README.md").write_text(model_card(manifest, results), "utf-8")
    (folder / "report.html").write_text(html_report(manifest, examples), "utf-8")
    write_manifest(folder, {**manifest, "run": clock.report()})


def warnings(
    model: Model | None,
    calibration: CalibrationSet,
    held_out: Mapping,
    results: Mapping,
    data_sets: Mapping[str, DataSet],
) -> Iterator[str]:
    """What a user should know about the model, where one is open, and the sets, one line each."""
    yield from model.notes if model is not None else ()
    if not results:
        yield "nothing was measured: SafeGround needs captions and images, and a model with both towers"
    if (pairs := len(calibration)) < LEAST_CALIBRATION_PAIRS:
        yield f"only {pairs} calibration pairs; scores from fewer than {LEAST_CALIBRATION_PAIRS} are mostly noise"
    yield from calibration.warnings()
    for name, held in held_out.items():
        yield from (f"{name}: {line}" for line in replace(held, skipped={}).warnings())
    yield from (note for data in data_sets.values() for note in data.odd)
