"""From a recipe to a folder with the front of safety against loss: `tune(TuneRecipe(...), output)` is `uwm tune`."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..calibration import CalibrationSet
from ..clock import now
from ..editing.files import fit
from ..embedding import quadruples
from ..errors import BadInput
from ..evaluation import EvalResult, differences, summarise, zero_shot_fields
from ..inputs import (
    Inputs,
    Sets,
    check_sets_with,
    input_paths,
    load_model,
    public_settings,
    read_all,
)
from ..inputs.fingerprints import content_or_tag, data_set_fingerprint, device_name, model_files
from ..knowledge import DataSet
from ..manifest import Manifest, read_manifest, write_manifest
from ..outputs import MANIFEST, filled_folder, link_note
from ..report import versions
from ..report.plotting import check_plotting
from ..stages import finish, plan, stage
from ..statistics.batches import Progress
from ..version import __version__
from .budgets import Budget
from .cached_sets import CachedDataSets, CachedPairs, Changes
from .cached_tower import CachedTower
from .choosing import Ground, SearchRequest
from .defaults import FRONT_TRIALS, METHODS, OBJECTIVE
from .front import FORMAT, KIND, Front, Point, Result, Trials, read_front
from .front import Tried as TriedFacts
from .points import front_of, knee
from .search import Found, Search, Tried
from .writing import POINTS, WRITTEN, new_front, write_front

MOST_LOSS = 50.0  # percent; what loses more is no edit that anybody deploys, however safe it is
NO_LOSS = "0%"  # so that a loss is the greatest fall of any figure of knowledge, in percent of its value
JOURNAL = "study.journal"


@dataclass(frozen=True)
class TuneRecipe(Inputs):
    """Everything that decides a search. The fields are flags of `uwm tune`; those of `Inputs` mean the same.

    Attributes:
        methods: Editors to try; none for `METHODS`.
        settings: Settings by hand, of the methods that have them; the others are not tried.
        objective: As in `uwm.expressions.parse_objective`.
        trials: How many edits are tried; more than there are continue a search.
        preserve: Safe captions and images without partners, see `uwm.calibration.read_preservation`.
    """

    methods: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    objective: str = OBJECTIVE
    trials: int = FRONT_TRIALS
    preserve: str | None = None


@dataclass(frozen=True)
class Tuned:
    """What `tune` found: the content of tune.json, and what a user should know."""

    front: Front
    warnings: tuple[str, ...] = ()


def tune(recipe: TuneRecipe, output: Path, *, overwrite: bool = False, progress: Progress | None = None) -> Tuned:
    """Search the trade-offs of safety against loss, measure those of the front on held-out pairs, and write them.

    Args:
        recipe: The settings.
        output: A folder; a search that was killed there goes on, and ends as if it had not been killed.
        overwrite: Begin anew.
        progress: As in `uwm.score`.

    Raises:
        UwmError: Of every kind; trials that are done stay.
    """
    check_plotting()
    request = SearchRequest(NO_LOSS, False, recipe.objective, recipe.methods, recipe.settings, recipe.trials, METHODS)
    request.check()
    paths = input_paths(recipe, recipe.preserve)
    with filled_folder(output, KIND, "search of uwm tune", paths) as folder:
        found = _carry_out(recipe, request, paths[0], folder, overwrite, progress)
    return replace(found, warnings=(*link_note(output, folder), *found.warnings))


def _carry_out(
    recipe: TuneRecipe,
    request: SearchRequest,
    model_path: Path,
    output: Path,
    overwrite: bool,
    progress: Progress | None,
) -> Tuned:
    """What `tune` does after the checks, with the lock of the folder held."""
    known = _known_search(output)
    stage(progress, "reading the sets", 0)
    sets = read_all(recipe, recipe.preserve)
    few = 0.02 * recipe.trials
    plan(progress, {"reading the sets": few, "loading the model": few, "profiling": 10 * few + 10,
                    "searching": recipe.trials, "measuring the front": 10})  # fmt: skip
    budget = Budget.of(request, sets, recipe.seed)
    key = _key(recipe, model_path, sets)
    if not overwrite and known not in (None, key):
        raise BadInput(
            f"{output}: holds a search with other settings, another model or other sets; choose another output, or "
            "pass --overwrite to begin anew"
        )
    stage(progress, "loading the model", 0)
    model = load_model(recipe, keep=True, reads=sets.calibration)
    sets.check_images(model, recipe.workers)
    reached = check_sets_with(recipe, model, {"calibration": sets.calibration, **sets.held_out}, sets.data_sets)
    stage(progress, "profiling", 8)
    ground = budget.ground(recipe, model, progress)
    _open(output, key, overwrite)
    _search(recipe, budget, ground, sets, output)
    finish(progress)
    return Tuned(read_front(output), (*model.notes, *sets.checked.told, *reached, *budget.told, *ground.refused))


def _search(recipe: TuneRecipe, budget: Budget, ground: Ground, sets: Sets, output: Path) -> None:
    """The search, and its front measured on held-out pairs and written."""
    search = ground.search(budget.request, budget.criteria, output / JOURNAL)
    stage(ground.progress, "searching")
    begun, before = time.perf_counter(), search.done
    found = search.run(recipe.trials, ground.progress)
    rate = _rate(found, before, time.perf_counter() - begun)
    stage(ground.progress, "measuring the front", 8)
    measured = _HeldOut(ground, sets.held_out, budget.measuring)
    run = _Run(recipe, budget, ground, search, found, sets.calibration.fingerprint())
    with new_front(output) as folder:
        write_front(folder, run.front(folder, measured, rate))


def _rate(found: Found, before: int, spent: float) -> dict[str, float]:
    """Seconds of all trials, and trials a minute of this run; of all where this run made none."""
    seconds, done = sum(found.seconds.values()), sum(found.trials.values())
    made = done - before
    rate = made / spent if made else done / seconds if seconds else 0.0
    return {"seconds": round(seconds, 2), "per_minute": round(60 * rate, 1)}


# ---------------------------------------------------------------- the folder


def _key(recipe: TuneRecipe, model: Path, sets: Sets) -> str:
    """sha256 over what decides each trial of a search, so that another search is not continued."""
    about = {
        "uwm": __version__,
        "format": FORMAT,
        "model": model_files(model),
        "opened": [recipe.arch, recipe.quick_gelu, recipe.key, recipe.dtype, device_name(recipe.device)],
        "preprocess": None if recipe.preprocess is None else content_or_tag(recipe.preprocess),
        "calibration": sets.calibration.fingerprint(),
        "preserve": None if sets.preserve is None else sets.preserve.fingerprint(),
        "data_sets": [data_set_fingerprint(data) for data in sets.data_sets.values()],
        "methods": list(recipe.methods),
        "settings": dict(sorted(recipe.settings.items())),
        "objective": recipe.objective,
        "seed": recipe.seed,
        "batch_size": recipe.batch_size,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _known_search(output: Path) -> str | None:
    """The key of the search that a folder holds, None for a new folder."""
    return read_manifest(output).get("search", "") if (output / MANIFEST).is_file() else None


def _open(output: Path, key: str, overwrite: bool) -> None:
    """Mark a new folder; of an older search that is begun anew nothing is left. Raises ResourceFault."""
    if overwrite:
        shutil.rmtree(output / POINTS, ignore_errors=True)
        for name in (JOURNAL, *WRITTEN):
            (output / name).unlink(missing_ok=True)
    write_manifest(output, Manifest(format=FORMAT, kind=KIND, versions=versions(), search=key))


# ---------------------------------------------------------------- held-out pairs


class _HeldOut:
    """The sets to measure on, which no trial saw; data sets are measured with the first of them."""

    def __init__(
        self, ground: Ground, held_out: Mapping[str, CalibrationSet], data_sets: Mapping[str, DataSet]
    ) -> None:
        keep = partial(CachedTower, ground.model, **ground.reading)
        self._seed = ground.seed
        self._whole = {name: quadruples(pairs) for name, pairs in held_out.items()}
        self._pairs = {name: CachedPairs(whole, keep) for name, whole in self._whole.items()}
        self._data_sets = CachedDataSets(ground.model, data_sets, keep)
        self.baseline = self.measure({})

    def measure(self, changes: Changes) -> dict[str, EvalResult]:
        """Set -> result, as `uwm.evaluate` gives it."""
        results = {}
        known = self._data_sets.classify(changes, self._seed)
        for number, (name, whole) in enumerate(self._whole.items()):
            measured = summarise(self._pairs[name].embed(changes).pairs, whole, self._seed)
            results[name] = EvalResult(**measured, **zero_shot_fields(known if number == 0 else {}))
        return results


# ---------------------------------------------------------------- the front


@dataclass(frozen=True)
class _Run:
    """A search that is done."""

    recipe: TuneRecipe
    budget: Budget
    ground: Ground
    search: Search
    found: Found
    calibration: str

    def front(self, folder: Path, held_out: _HeldOut, rate: Mapping[str, float]) -> Front:
        """Everything that is told, with the patch of each point of the front in a file below a folder."""
        found, criteria = self.found, self.budget.criteria
        lower = criteria.lower_is_better
        known = [one for one in found.tried if one.loss <= MOST_LOSS]
        if not known:
            raise BadInput(
                f"none of {len(found.tried) + found.invalid} edits could be made and measured without losing more than "
                f"{MOST_LOSS:g} % of what the model knows; try other methods or settings"
            )
        rows: Iterable[int] = front_of([vars(one) for one in known], lower)
        if self.ground.progress is not None:
            rows = self.ground.progress(rows, len([*rows]), "measure")
        points = [self._point(n, known[row], folder, held_out) for n, row in enumerate(rows, 1)]
        kept = {one["trial"] for one in points}
        checkpoint = self.ground.model.checkpoint
        assert checkpoint is not None
        public = public_settings(self.recipe, checkpoint.path)
        return Front(
            format=FORMAT,
            kind=KIND,
            versions=versions(),
            run={"date": now()},
            settings=public,
            model={"name": public["model"], "sha256": checkpoint.file_hashes()},
            calibration={
                "name": Path(self.recipe.calib).resolve().name,
                "pairs": self.ground.validation.pairs,
                "folds": len(self.ground.folds),
                "sha256": self.calibration,
            },
            objective={"text": criteria.objective.text, "label": criteria.label, "lower_is_better": lower},
            loss={"terms": [term.expression.text for term in criteria.terms], "unit": "%"},
            trials=self._trials(rate),
            baseline={
                "cross_validated": _result(self.ground.validation.baseline),
                "held_out": {name: _result(result) for name, result in held_out.baseline.items()},
            },
            points=points,
            knee=knee(points, lower),
            tried=[_tried(one, kept) for one in found.tried],
            notes=[*self.ground.refused, *_left_out(len(found.tried) - len(known))],
        )

    def _trials(self, rate: Mapping[str, float]) -> Trials:
        found = self.found
        return {
            "asked": self.recipe.trials,
            "done": len(found.tried),
            "invalid": found.invalid,
            "stopped": found.stopped,
            "by_method": {n: {"trials": c, "seconds": round(found.seconds[n], 2)} for n, c in found.trials.items()},
            **rate,  # type: ignore[typeddict-item]
        }

    def _point(self, number: int, tried: Tried, folder: Path, held_out: _HeldOut) -> Point:
        """One point: its patch is written, and it is measured with intervals and on held-out pairs."""
        edits = self.search.candidates.edits(tried.method, tried.settings)
        checked = self.ground.validation.measure(edits, detailed=True)
        measured = held_out.measure(edits.whole)
        place = f"{POINTS}/{number:02d}.safetensors"
        self._write_patch(tried, folder / place)
        return {
            "number": number,
            "trial": tried.number,
            "method": tried.method,
            "settings": tried.settings,
            "patch": place,
            "objective": tried.objective,
            "loss": tried.loss,
            "cross_validated": _result(checked, self.ground.validation.baseline),
            "held_out": {name: _result(found, held_out.baseline[name]) for name, found in measured.items()},
        }

    def _write_patch(self, tried: Tried, path: Path) -> None:
        checkpoint = self.ground.model.checkpoint
        assert checkpoint is not None
        path.parent.mkdir(parents=True, exist_ok=True)
        fit(checkpoint, self.search.candidates.patch(tried.method, tried.settings, self.calibration))[0].save(path)


def _tried(one: Tried, front: Container[int]) -> TriedFacts:
    """As tune.json has it."""
    return {
        "trial": one.number,
        "method": one.method,
        "settings": one.settings,
        "objective": one.objective,
        "loss": one.loss,
        "front": one.number in front,
    }


def _left_out(count: int) -> list[str]:
    """That trials which destroy the model are no points of the front: without knowledge unsafe things are not found."""
    words = f"{count} trials lose more than {MOST_LOSS:g} % of what the model knows; they are no points of the front"
    return [words] if count else []


def _result(result: EvalResult, baseline: EvalResult | None = None) -> Result:
    """As tune.json has it."""
    found: Result = {
        "pairs": result.pairs,
        "figures": result.figures,
        "zero_shot": result.zero_shot,
        "by_concept": result.by_concept,
    }
    return found if baseline is None else {**found, "changes": differences(result, baseline)}
