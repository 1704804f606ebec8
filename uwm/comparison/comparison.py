"""From a recipe to a folder with tables, a page and plots: `compare(CompareRecipe(...), output)` is `uwm compare`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..backends import Backend, find_backends
from ..backends.lora import check_installed
from ..backends.training import check_training
from ..calibration import CalibrationSet, read_preservation
from ..checkpoint import check_written
from ..clock import now
from ..embedding import quadruples
from ..escaping import file_part
from ..inputs import Checked, SharedImages, check_sets, input_paths, public_settings, read_data_sets, read_sets
from ..inputs.fingerprints import content_or_tag, data_set_fingerprint, device_name, model_files
from ..manifest import Manifest, write_manifest
from ..models.references import resolve
from ..outputs import check_filled, filled_folder, link_note, put_file
from ..records import to_json
from ..report import versions
from ..report.plotting import check_plotting
from ..statistics.batches import Progress
from .bench import Bench
from .figures import Row, rows
from .methods import Given, Method, Train, parse_methods
from .page import comparison_page
from .plan import FORMAT, Facts, Run, plan
from .plot import draw
from .results import Result, Yardstick, classes_of
from .runner import RESULTS, carry_out, clear, path_of
from .settings import CompareRecipe
from .table import csv_table, latex, markdown

KIND = "comparison"
NAME = "comparison"  # of the tables and the plot, before their suffixes


@dataclass(frozen=True)
class Comparison:
    """What was compared.

    Attributes:
        tables: Evaluation set -> rows, the unedited model first.
        pairs: Evaluation set -> how many quadruples it has.
        about: Settings, fingerprints and versions.
        notes: What a reader of the tables should know.
        warnings: What a user should know of the sets.
    """

    tables: dict[str, list[Row]]
    pairs: dict[str, int]
    about: dict[str, Any]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """For JSON: everything."""
        tables = {name: [row.as_dict() for row in rows] for name, rows in self.tables.items()}
        return {**self.about, "pairs": self.pairs, "tables": tables, "notes": [*self.notes]}


@dataclass(frozen=True)
class _Prepared:
    """What is known before any model is loaded."""

    recipe: CompareRecipe
    bench: Bench
    yardstick: Yardstick
    runs: list[Run]
    checked: Checked


def compare(
    recipe: CompareRecipe,
    output: Path,
    *,
    overwrite: bool = False,
    keep_checkpoints: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Run every method with every seed, measure all models on the same sets, and write tables, a page and plots.

    Args:
        recipe: The settings.
        output: A folder that is filled over time. What it has already is not made anew, so that a run that was killed
            continues, and methods can be added.
        overwrite: Make everything anew.
        keep_checkpoints: Leave the fine-tuned models in ``checkpoints/``.
        progress: As in `uwm.score`.

    Raises:
        UwmError: Of every kind; results that are there stay.
    """
    check_plotting()
    with filled_folder(output, KIND, KIND, _read(recipe)) as folder:
        found = _carry_out(recipe, folder, overwrite, keep_checkpoints, progress)
    return replace(found, warnings=(*link_note(output, folder), *found.warnings))


def _carry_out(
    recipe: CompareRecipe, output: Path, overwrite: bool, keep_checkpoints: bool, progress: Progress | None
) -> Comparison:
    """What `compare` does after the checks, with the lock of the folder held."""
    prepared = prepare(recipe, output)
    _open(output, overwrite)
    carry_out(prepared.runs, prepared.bench, prepared.yardstick, keep_checkpoints, progress)
    found = _gather(prepared, output)
    _write(found, output)
    clear(output, keep_checkpoints)
    return found


def planned(recipe: CompareRecipe, output: Path) -> list[tuple[str, bool]]:
    """The runs of a comparison by name, and whether each is there already; nothing is run or written."""
    output = check_filled(output, KIND, KIND, _read(recipe))
    runs = prepare(recipe, output).runs
    return [(run.name(), path_of(output, run).is_file()) for run in runs]


def _methods(recipe: CompareRecipe, backends: Mapping[str, Backend]) -> list[Method]:
    default = {"text_layers": recipe.text_layers, "vision_layers": recipe.vision_layers}
    return parse_methods(recipe.methods, backends, default, recipe.training)


def _read(recipe: CompareRecipe) -> list[Path]:
    """What is read, the checkpoints among the methods included, so that the folder is not laid over or into it."""
    stages = (stage for method in _methods(recipe, find_backends()) for stage in method.stages)
    given = [Path(stage.reference) for stage in stages if isinstance(stage, Given)]
    return [*input_paths(recipe, recipe.preserve), *(path for path in given if path.exists())]


def prepare(recipe: CompareRecipe, output: Path) -> _Prepared:
    """Read and check everything but models."""
    backends = find_backends()
    methods = _methods(recipe, backends)
    recipe.check(any(method.trains for method in methods))
    _check_training(recipe, methods, backends)
    model = resolve(recipe.model, **recipe.hub())
    check_written(model)
    pairs, sets = read_sets(recipe)
    sets = {name: quadruples(found) for name, found in sets.items()}
    data_sets = read_data_sets(recipe)
    share = recipe.validation
    split = {s: pairs.holdout(share, s, "--validation") if share else (pairs, pairs) for s in recipe.seeds}
    calibration = {seed: first for seed, (first, _) in split.items()}
    validation = {seed: second for seed, (_, second) in split.items()}
    yardstick = Yardstick(sets, data_sets, recipe.batch_size, recipe.workers, recipe.seed)
    shared = {
        "model": model_files(model),
        "opened": [recipe.arch, recipe.quick_gelu, recipe.key, recipe.dtype, device_name(recipe.device)],
        **({} if recipe.preprocess is None else {"preprocess": content_or_tag(recipe.preprocess)}),
        "batch_size": recipe.batch_size,
        "sets": {name: found.fingerprint() for name, found in sets.items()},
        "data_sets": [data_set_fingerprint(data) for data in data_sets.values()],
    }
    preserve = None if recipe.preserve is None else read_preservation(recipe.preserve)
    shared |= {} if preserve is None else {"preserve": preserve.fingerprint()}
    training = {"dtype": recipe.train_dtype, "micro_batch": recipe.micro_batch}
    given = _given(methods, recipe)
    facts = Facts(shared, _fingerprints(calibration), _fingerprints(validation), given, backends, training)
    images = SharedImages([pairs, *sets.values()], recipe.workers, preserve)
    bench = Bench(recipe, facts, calibration, validation, output, images, preserve)
    checked = check_sets(recipe, pairs, sets, data_sets, preserve=preserve, validation=validation.values())
    return _Prepared(recipe, bench, yardstick, plan(recipe, methods, facts), checked)


def _check_training(recipe: CompareRecipe, methods: list[Method], backends: Mapping[str, Backend]) -> None:
    """Refuse fine-tuning that cannot work before anything is read. Raises BadInput."""
    for stage in (stage for method in methods for stage in method.stages if isinstance(stage, Train)):
        check_installed()
        settings = replace(backends[stage.backend].settings, **dict(stage.changes))
        check_training(settings, recipe.computing())


def _fingerprints(sets: Mapping[int, CalibrationSet]) -> dict[int, str]:
    return {seed: pairs.fingerprint() for seed, pairs in sets.items()}


def _given(methods: list[Method], recipe: CompareRecipe) -> dict[str, Any]:
    """Reference -> fingerprint of every checkpoint among the methods."""
    stages = [stage for method in methods for stage in method.stages if isinstance(stage, Given)]
    hub = {**recipe.hub(), "revision": None}
    paths = {stage.reference: resolve(stage.reference, **hub) for stage in stages}
    for path in paths.values():
        check_written(path)
    return {reference: model_files(path) for reference, path in paths.items()}


def _open(output: Path, overwrite: bool) -> None:
    """Mark a folder as a comparison's; of one that is begun anew nothing is left. Raises ResourceFault."""
    if overwrite:
        shutil.rmtree(output / RESULTS, ignore_errors=True)
        clear(output, keep=False)
    write_manifest(output, Manifest(format=FORMAT, kind=KIND, versions=versions()))


def _gather(prepared: _Prepared, output: Path) -> Comparison:
    """All results as rows."""
    yardstick, recipe = prepared.yardstick, prepared.recipe
    results = {run: Result.load(path_of(output, run), yardstick.wanted(run.key, run.epoch)) for run in prepared.runs}
    classes = {name: classes_of(data) for name, data in yardstick.data_sets.items()}
    notes = [f"{run.name()}: {note}" for run, result in results.items() for note in result.notes]
    return Comparison(
        rows(results, classes, recipe.seed),
        {name: len(found) for name, found in yardstick.sets.items()},
        _about(prepared),
        tuple(notes),
        prepared.checked.told,
    )


def _about(prepared: _Prepared) -> dict[str, Any]:
    """Settings without this machine's paths, fingerprints and versions."""
    recipe, facts = prepared.recipe, prepared.bench.facts
    settings = public_settings(recipe, resolve(recipe.model, **recipe.hub()))
    settings["methods"] = list(dict.fromkeys(run.method for run in prepared.runs))
    sources = {
        s.backend: facts.backends[s.backend].source for r in prepared.runs for s in r.stages if hasattr(s, "backend")
    }
    return {
        "format": FORMAT,
        "kind": KIND,
        "versions": versions(),
        "settings": settings,
        "model_sha256": facts.shared["model"],
        "sets_sha256": facts.shared["sets"],
        "shared": {name: asdict(found) for name, found in prepared.checked.shared.items()},
        "calibration": {
            str(seed): {
                "pairs": len(pairs),
                "validation_pairs": len(prepared.bench.validation[seed]) if recipe.validation else 0,
            }
            for seed, pairs in prepared.bench.calibration.items()
        },
        "sources": sources,
    }


def _write(found: Comparison, output: Path) -> None:
    """The tables, the page and the plot, each whole or not at all."""
    texts = {
        "md": markdown(found.tables, found.pairs, found.notes),
        "csv": csv_table(found.tables),
        "tex": latex(found.tables, found.pairs),
        "json": to_json(found.as_dict()) + "\n",
    }
    page = comparison_page(found.tables, found.pairs, found.notes, {**found.about, "run": {"date": now()}})
    put_file(output / "report.html", page.encode())
    for suffix, text in texts.items():
        put_file(output / f"{NAME}.{suffix}", text.encode())
    for number, (name, table) in enumerate(found.tables.items()):
        place = NAME if number == 0 else f"{NAME}-{file_part(name)}"
        for suffix, image in draw(table, f"{name}, {found.pairs[name]} pairs").items():
            put_file(output / f"{place}.{suffix}", image)
