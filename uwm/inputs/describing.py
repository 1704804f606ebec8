"""Describe what a job read and measured: uwm.json, the model card, the page, warnings."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

from ..calibration import CalibrationSet, Preservation, Shared, shared, signal
from ..clock import Clock
from ..errors import BadInput
from ..evaluation import EvalResult, collapse_notes
from ..knowledge import DataSet, check_classes
from ..manifest import FORMAT, Manifest, SharedFacts, write_manifest
from ..models import Model
from ..models.references import commit_of, hub_name, name_of
from ..report import Example, html_report, model_card, paired_differences, read_base_card, verdict_facts, versions
from .calibrated import item_facts
from .reading import Inputs
from .resuming import how_it_ran

LEAST_CALIBRATION_PAIRS = 16  # scores from fewer are mostly noise


def public_settings(inputs: Inputs, model: Path) -> dict[str, Any]:
    """The settings without the paths of this machine; `model` is the path behind the reference."""
    settings = asdict(inputs) | {"model": name_of(inputs.model, model), "revision": commit_of(model) or inputs.revision}
    settings |= dict.fromkeys(("cache_dir", "data_root", "safe_images", "unsafe_images"))
    named = ("calib", "eval_set", "templates", "preserve", "preprocess")
    settings |= {key: Path(settings[key]).resolve().name for key in named if settings.get(key)}
    del settings["workers"]  # by default the machine's processors, on which nothing else depends
    settings.pop("cache", None)
    return settings | {"zero_shot": [Path(folder).name for folder in inputs.zero_shot]}


def describe_results(
    results: Mapping[str, Mapping[str, EvalResult]], seed: int, shared: Mapping[str, Shared]
) -> Manifest:
    """Figures, paired differences, the verdict, and what the sets share with what was learnt from, for uwm.json."""
    figures = {n: {column: r.as_dict() for column, r in columns.items()} for n, columns in results.items()}
    differences = {n: paired_differences(columns, seed) for n, columns in results.items()}
    found: Manifest = {
        "results": figures,
        "differences": differences,
        "shared": {n: cast(SharedFacts, asdict(common)) for n, common in shared.items()},
    }
    verdict = verdict_facts(figures, differences)
    return found if verdict is None else {**found, "verdict": verdict}


def describe_inputs(
    inputs: Inputs,
    model: Model,
    calibration: CalibrationSet,
    pairs: Any,
    sha256: str,
    preserve: Preservation | None = None,
) -> Manifest:
    """Versions, settings, model and calibration set, with all that was learnt from, for uwm.json."""
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
            "name": calibration.name,
            "pairs": pairs,
            "skipped": calibration.skipped | calibration.missing(),
            "sha256": sha256,
            "items": item_facts(chain.from_iterable(_learnt([calibration], preserve)), model.checkpoint.path),
        },
    }


def write_documents(
    folder: Path, model: Model, manifest: Manifest, results: Mapping, clock: Clock, examples: Sequence[Example] = ()
) -> None:
    """Write the model card, with that of the model that was read, the page and uwm.json beside the weights."""
    assert model.checkpoint is not None
    base = read_base_card(model.checkpoint.path)
    model.notes += base.warnings
    manifest = {**manifest, "run": how_it_ran(model, clock)}
    (folder / "README.md").write_text(model_card(manifest, results, base), "utf-8")
    (folder / "report.html").write_text(html_report(manifest, examples), "utf-8")
    write_manifest(folder, manifest)


@dataclass(frozen=True)
class Checked:
    """What was found out about the sets of a job.

    Attributes:
        told: What a user should know, one line each.
        shared: By set to measure on, what it shares with what the job learns from.
    """

    told: tuple[str, ...]
    shared: dict[str, Shared]


def check_sets(
    inputs: Inputs,
    calibration: CalibrationSet,
    held_out: Mapping[str, CalibrationSet],
    data_sets: Mapping[str, DataSet],
    *,
    preserve: Preservation | None = None,
    validation: Collection[CalibrationSet] = (),
) -> Checked:
    """Find out what a user should know about the sets of a job, before a model is loaded.

    Args:
        inputs: With ``strict``, sets that would be warned of are refused.
        calibration, preserve, validation: What the job learns from.
        held_out, data_sets: What it measures on.

    Raises:
        BadInput: There is something to warn of, and the job is strict.
    """
    seen = frozenset[Any]().union(*_learnt((calibration, *validation), preserve))
    found = {name: shared(seen, held.items()) for name, held in held_out.items()}
    drawn = dict.fromkeys(note for pairs in validation for note in pairs.notes)
    lines = (*_set_warnings(calibration, held_out, data_sets), *drawn, *_shared_lines(found, held_out))
    _refuse_if_strict(inputs, lines)
    return Checked(lines, found)


def _learnt(sets: Collection[CalibrationSet], preserve: Preservation | None) -> Iterator[frozenset[Any]]:
    """The captions and images that a job learns from, by pair."""
    for pairs in sets:
        yield from pairs.items()
    if preserve is not None:
        yield preserve.items(next(iter(sets)).hashed)


def check_sets_with(
    inputs: Inputs, model: Model, sets: Mapping[str, CalibrationSet], data_sets: Mapping[str, DataSet]
) -> tuple[str, ...]:
    """Find out what a model cannot tell apart in the sets, see `model_warnings`. Raises BadInput as `check_sets`."""
    lines = (*model_warnings(model, sets, data_sets),)
    _refuse_if_strict(inputs, lines)
    return lines


def _refuse_if_strict(inputs: Inputs, lines: Sequence[str]) -> None:
    if inputs.strict and lines:
        raise BadInput(f"--strict refuses what is a warning without it: {'; '.join(lines)}")


def _set_warnings(
    calibration: CalibrationSet, held_out: Mapping[str, CalibrationSet], data_sets: Mapping[str, DataSet]
) -> Iterator[str]:
    if (pairs := len(calibration)) < LEAST_CALIBRATION_PAIRS:
        yield f"only {pairs} calibration pairs; scores from fewer than {LEAST_CALIBRATION_PAIRS} are mostly noise"
    yield from calibration.warnings()
    for name, held in held_out.items():
        yield from (f"{name}: {line}" for line in replace(held, skipped={}).warnings())
    yield from (note for data in data_sets.values() for note in data.odd)


def _shared_lines(found: Mapping[str, Shared], held_out: Mapping[str, CalibrationSet]) -> Iterator[str]:
    for name, common in found.items():
        if common.pairs:
            yield (
                f"{name}: {common.pairs} of {len(held_out[name])} pairs share captions or images with what is learnt "
                f"from ({common.captions} captions, {common.images} images), so figures may be too good; measure on "
                "pairs that share none"
            )


def warnings(model: Model, told: Iterable[str], results: Mapping[str, Mapping[str, EvalResult]]) -> Iterator[str]:
    """What a user should know about the model, the sets (`told`) and towers that have collapsed, one line each."""
    yield from model.notes
    if not results:
        lack = "the held-out pairs lack captions or images" if len(model.modalities) > 1 else "the model has one tower"
        yield f"nothing was measured: SafeGround needs captions and images, and both towers; {lack}"
    yield from told
    yield from dict.fromkeys(note for columns in results.values() for note in collapse_notes(columns))


def model_warnings(model: Model, sets: Mapping[str, CalibrationSet], data_sets: Mapping[str, DataSet]) -> Iterator[str]:
    """What a user should know about a model with the sets: captions that it cuts, pairs and classes equal for it."""
    for name, pairs in sets.items():
        yield from (f"{name}: {line}" for line in signal(model, pairs).warnings())
    yield from check_classes(model, data_sets)
