"""The main job from settings to a folder on disk: `run(Recipe(...))` is what `uwm edit` does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

from .calibration import CalibrationSet, Preservation
from .checkpoint import check_written, open_checkpoint
from .checkpoint.reach import unread_for
from .clock import Clock
from .editing import settings
from .editing.editors import DEFAULT, Editor, find_editor
from .editing.files import fit, write_patched
from .editing.live import patched
from .editing.patch import PATCH_FILE, Patch
from .editing.purposes import DEFAULT_FOR, measured_by, settings_for
from .editing.stability import UntilStable, check_share
from .embedding import embed, quadruples
from .errors import BadInput, InvalidResult
from .evaluation import EvalResult
from .fitting import Edit, Recipe, make_edits
from .inputs import (
    Sets,
    check_sets_with,
    demand_pairs,
    demand_towers,
    describe_inputs,
    describe_results,
    how_it_ran,
    input_paths,
    keep_work,
    load_model,
    measure,
    read_all,
    tower_facts,
    warnings,
    work_is_done,
    write_documents,
)
from .label_noise import LabelNoise, label_noise_of
from .manifest import EditFacts, LayerFacts, Manifest
from .models import Model
from .models.export import check_export, export
from .outputs import OutputFolder, output_folder
from .repeating import Recorded
from .report import Example, find_examples
from .shipped_files import DEMO_SET, check_demo_set
from .stages import finish, plan
from .statistics.batches import Progress
from .statistics.embeddings import PairEmbeddings
from .statistics.sources import keep_for
from .tuning.budgets import Budget
from .tuning.choosing import SearchRequest
from .tuning.defaults import OBJECTIVE, TRIALS

READ, LOAD, CHOOSE, PROFILE, WRITE = "reading the sets", "loading the model", "choosing", "profiling", "writing"
BEFORE = "before"  # the unedited model's column

NOTHING = Recorded()
DEMO_MASS = 0.1  # chosen on the split val by calibration/build/choose_demo.py


@dataclass(frozen=True)
class Outcome:
    """What a run made: the patch, the results by evaluation set and column, the manifest, and warnings."""

    patch: Patch
    results: dict[str, dict[str, EvalResult]]
    manifest: Manifest
    warnings: tuple[str, ...] = field(default=())


def run(
    recipe: Recipe,
    output: Path | None = None,
    *,
    overwrite: bool = False,
    show_examples: bool = False,
    progress: Progress | None = None,
    recorded: Recorded = NOTHING,
) -> Outcome:
    """Gather statistics, edit, measure before and after and against a random control, and write.

    Args:
        recipe: The settings.
        output: The folder to write; None writes nothing (a dry run).
        overwrite: Replace an output that exists.
        show_examples: Show captions and images of the evaluation set in report.html.
        progress: As in `uwm.score`.
        recorded: What the run has to agree with, see `uwm.repeating.repeat`.

    Raises:
        UwmError: Of every kind; whatever happens, an earlier output stays whole until the new one is verified.
    """
    recipe, request, paths = _check(recipe)
    if output is None:
        return _carry_out(recipe, request, None, show_examples, progress, recorded)
    check_written(paths[0], recipe.also_export)
    with output_folder(output, paths, overwrite) as place:
        return _carry_out(recipe, request, place, show_examples, progress, recorded)


def _carry_out(
    recipe: Recipe,
    request: SearchRequest | None,
    place: OutputFolder | None,
    show_examples: bool,
    progress: Progress | None,
    recorded: Recorded,
) -> Outcome:
    """What `run` does after the checks, with the lock of the output held."""
    clock = Clock(progress)
    with clock("read", READ):
        sets = read_all(recipe, recipe.preserve)
        recorded.check_sets(sets)
        demand_pairs(recipe.require_towers, sets.calibration)
        budget = None if request is None else Budget.of(request, sets, recipe.seed)
    plan(progress, _stages(recipe, request, sets, place is not None))
    with clock("load", LOAD):
        model, reached = _load(recipe, sets, recorded, progress)
    if budget is not None:
        with clock("choose", CHOOSE, 8):
            choice = budget.choose(recipe, model, progress)
            recipe = replace(recipe, method=choice.chosen.method, settings=choice.chosen.settings)
        plan(progress, _stages(recipe, request, sets, place is not None))
    with clock("edit", PROFILE):
        kept = PairEmbeddings()
        fitted = make_edits(recipe, model, sets.calibration, progress, sets.preserve, also=[kept])
        edit, noise = fitted.edits[recipe.method or DEFAULT], label_noise_of(kept, fitted.calibration)
        towers = tower_facts(model, fitted.calibration, edit.patch.changes)
        demand_towers(recipe.require_towers, towers, model.modalities)
    with clock("evaluate"):
        data_sets = sets.data_sets if budget is None else budget.measuring
        results = measure(recipe, _columns(model, fitted.edits), sets.held_out, data_sets, progress)
        examples = _examples(recipe, model, edit, sets.held_out, results) if show_examples else []
    manifest = _manifest(recipe, model, sets, edit, results) | _where_there_are(noise, sets.preserve, fitted.stable)
    manifest["towers"] = towers
    made = fitted.told
    if budget is not None:
        manifest["budget"] = budget.facts(choice, results)
        made = (*budget.told, *choice.told, *made)
    if place is not None:
        with clock("write", WRITE), place.make() as folder:
            manifest["output_sha256"] = _write_weights(folder, model, edit.patch, recipe.also_export)
            recorded.check_output(manifest["output_sha256"])
            write_documents(folder, model, manifest, results, clock, examples)
    _end(model, progress)
    manifest["run"] = how_it_ran(model, clock)
    told = (*edit.proposal.warnings, *measured_by(recipe.purpose), *made)
    told += (*warnings(model, (*sets.checked.told, *reached), results),)
    told = told if place is None else (*place.notes, *told)
    return Outcome(edit.patch, results, manifest, told)


def _end(model: Model, progress: Progress | None) -> None:
    """All is written: nothing is to be gone on with, or to be waited for."""
    work_is_done(model.unfinished)
    finish(progress)


def _stages(recipe: Recipe, request: SearchRequest | None, sets: Sets, written: bool) -> dict[str, float]:
    """The stages of a run, and how long each takes beside the others: by the inputs that go through the model."""
    profile = 4 * len(sets.calibration) + 1
    column = sum(4 * len(pairs) for pairs in sets.held_out.values()) + sum(map(len, sets.data_sets.values())) + 1
    few = 0.1 * profile
    search = 0 if request is None else 2 * profile + 10 * request.trials
    name = recipe.method or "the chosen edit"
    columns = dict.fromkeys((BEFORE, name, _control(name), *recipe.beside), column)
    return {READ: few, LOAD: few, CHOOSE: search, PROFILE: profile, **columns, WRITE: few * written}


def _load(recipe: Recipe, sets: Sets, recorded: Recorded, progress: Progress | None) -> tuple[Model, tuple[str, ...]]:
    """The model, and what it cannot tell apart in the sets. Raises UwmError."""
    model = load_model(recipe, keep=True, reads=sets.calibration)
    assert model.checkpoint is not None
    recorded.check_model(model)
    model.leave_unread(unread_for(recipe.purpose, model.checkpoint))
    sets.check_images(model, recipe.workers)
    told = check_sets_with(recipe, model, {"calibration": sets.calibration, **sets.held_out}, sets.data_sets)
    if recipe.also_export is not None:
        check_export(model, recipe.also_export)
    if recipe.cache:
        pairs = (sets.calibration, *sets.held_out.values())
        keep_work("edit", asdict(recipe), model, pairs, sets.data_sets.values(), sets.preserve, progress)
    return model, told


def _check(recipe: Recipe) -> tuple[Recipe, SearchRequest | None, list[Path]]:
    """Refuse what cannot work before anything is read.

    Returns:
        What is to be done, with the default method if needed; the search; and what is read, the model first.
    """
    request = _wish(recipe)
    if request is not None and recipe.purpose not in (None, "retrieval"):
        raise BadInput(
            f"--for {recipe.purpose}: --max-loss measures retrieval, which this is not for; choose settings by uwm "
            "eval --caption or --generate"
        )
    check_share(recipe.until_stable)
    if recipe.until_stable is not None and request is not None:
        raise BadInput("--until-stable: --max-loss measures all pairs under many edits; give one of the two")
    if request is not None:
        request.check()
    elif recipe.method is None:
        recipe = replace(recipe, method=DEFAULT_FOR.get(recipe.purpose or "", DEFAULT))
    if recipe.method is not None:
        editor = find_editor(recipe.method)
        recipe = replace(recipe, settings=settings_for(recipe.purpose, editor.name, recipe.settings))
        _check_editor(recipe, editor)
    paths = input_paths(recipe, recipe.preserve)
    if not recipe.again:
        _refuse_edited(paths[0])
    return recipe, request, paths


def _check_editor(recipe: Recipe, editor: Editor) -> None:
    """Refuse settings that cannot work. Raises UwmError."""
    taken = {f.name for f in fields(editor.Settings)} & {f.name for f in fields(recipe)}
    if taken:
        own = f"--method {editor.name}: its setting {min(taken)!r} has the name of one of uwm's own"
        raise BadInput(f"{own}; the editor has to rename it")
    settings.make(editor, recipe.settings)


def _wish(recipe: Recipe) -> SearchRequest | None:
    """What may be lost; None where nothing is said of it. Raises BadInput for what asks for more than that."""
    if recipe.max_loss is None:
        for flag, given, default in (("objective", recipe.objective, OBJECTIVE), ("trials", recipe.trials, TRIALS)):
            if given != default:
                raise BadInput(f"--{flag} {given}: says how --max-loss chooses an edit; give --max-loss LOSS too")
        return None
    methods = (recipe.method,) if recipe.method else ()
    return SearchRequest(recipe.max_loss, True, recipe.objective, methods, recipe.settings, recipe.trials)


def _refuse_edited(model: Path) -> None:
    """A second edit scores what the first one turned round, and may turn it back."""
    if not (model / PATCH_FILE).is_file():
        return
    try:
        fit(open_checkpoint(model), Patch.load(model), edited=True)
    except BadInput:
        return  # other weights than those that the patch made
    raise InvalidResult(
        f"{model}: already edited by uwm ({PATCH_FILE}); revert it first, or pass --again to edit it twice"
    )


def demo_recipe(**given: Any) -> Recipe:
    """`uwm demo`: the shipped model and set, measured on the test split and on the unseen style."""
    check_demo_set()
    method, chosen = given.pop("method", None), dict(given.pop("settings", {}))
    if method in (None, DEFAULT) and given.get("max_loss") is None and chosen.get("mass") is None:
        chosen["mass"] = DEMO_MASS
    return Recipe(
        model="demo",
        calib=str(DEMO_SET),
        split="calib",
        eval_splits=("test", "test-style"),
        zero_shot=tuple(str(DEMO_SET / "zero_shot" / name) for name in ("seen", "unseen")),
        method=method,
        settings=chosen,
        **given,
    )


def _control(name: str) -> str:
    """The column of the control of a method."""
    return "random" if name != "random" else "random again"


def _columns(model: Model, edits: Mapping[str, Edit]) -> Iterator[tuple[str, AbstractContextManager[Model]]]:
    """The unedited model, the edit under its method's name, its control, and the methods beside it."""
    keep_for(model, [patch.changes for edit in edits.values() for patch in (edit.patch, edit.control)])
    (name, edit), *others = edits.items()
    yield BEFORE, nullcontext(model)
    yield name, patched(model, edit.patch)
    yield _control(name), patched(model, edit.control)
    yield from ((other, patched(model, beside.patch)) for other, beside in others)


def _examples(
    recipe: Recipe, model: Model, edit: Edit, held_out: Mapping[str, CalibrationSet], results: Mapping
) -> list[Example]:
    """What queries of the first measured set find before and after; none where nothing was measured."""
    if not results:
        return []
    name = next(iter(results))
    pairs, embeddings = quadruples(held_out[name]), {}
    for column, patch in ((BEFORE, None), (edit.editor.name, edit.patch)):
        with nullcontext() if patch is None else patched(model, patch):
            embeddings[column] = embed(model, pairs, batch_size=recipe.batch_size, workers=recipe.workers)
    return find_examples(pairs, embeddings, recipe.seed)


def _manifest(recipe: Recipe, model: Model, sets: Sets, edit: Edit, results: Mapping) -> Manifest:
    """The content of uwm.json, without `run`."""
    patch, notes = edit.patch, edit.proposal.notes
    layers: dict[str, LayerFacts] = {
        str(name): cast(LayerFacts, {**asdict(summary), "notes": notes.get(name, {}), "base_sha256": patch.base[name]})
        for name, summary in patch.summaries().items()
    }
    learnt = patch.recipe["calibration"]
    manifest = describe_inputs(recipe, model, sets.calibration, edit.statistics.pairs, learnt, sets.preserve)
    unused = () if recipe.max_loss else ("max_loss", "objective", "trials")
    optional = ("until_stable", "require_towers", "purpose")
    for name in ("settings", *unused, *(name for name in optional if getattr(recipe, name) is None)):
        del manifest["settings"][name]
    manifest["settings"] |= asdict(edit.settings) | edit.proposal.settings
    manifest["edit"] = cast(
        EditFacts,
        {
            "title": edit.editor.title,
            "source": edit.editor.source,
            "given": dict(recipe.settings),
            **edit.proposal.report,
        },
    )
    manifest |= describe_results(results, recipe.seed, sets.checked.shared)
    manifest["entries"] = sum(layer["entries"] for layer in layers.values())
    manifest["of"] = sum(layer["of"] for layer in layers.values())
    manifest["layers"] = layers
    return manifest


def _where_there_are(noise: LabelNoise | None, preserve: Preservation | None, stable: UntilStable | None) -> Manifest:
    """What uwm.json says of label noise, of a preservation set, and of how few pairs were enough."""
    found: Manifest = {} if noise is None else {"label_noise": noise.as_dict()}
    found |= {} if stable is None else {"stable": {"wanted": stable.wanted, "curve": stable.curve}}
    return found if preserve is None else {**found, "preserve": preserve.facts()}


def _write_weights(folder: Path, model: Model, patch: Patch, also_export: str | None) -> dict[str, str]:
    """The edited weights with all that is needed to load them, and the export -> sha256 by file name."""
    assert model.checkpoint is not None
    hashes = write_patched(model.checkpoint, patch, folder, with_config=True)
    model.write_side_files(folder)
    if also_export is not None:
        with patched(model, patch):
            hashes |= export(model, folder, also_export)
    return hashes
