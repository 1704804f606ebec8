"""The main job from settings to a folder on disk: `run(Recipe(...))` is what `uwm edit` does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

from .calibration import CalibrationSet, Preservation
from .checkpoint import new_folder, open_checkpoint
from .clock import Clock
from .editing import settings
from .editing.editors import DEFAULT, Editor, Proposal, Statistics, find_editor
from .editing.files import fit, write_patched
from .editing.live import patched
from .editing.making import about, gather, make_patch, recipe_of
from .editing.patch import PATCH_FILE, Patch
from .editing.stability import UntilStable, check_share
from .embedding import embed, quadruples
from .errors import BadInput, InvalidResult
from .evaluation import EvalResult
from .inputs import (
    Inputs,
    Sets,
    check_paths,
    check_sets_with,
    describe_inputs,
    describe_results,
    load_model,
    measure,
    read_all,
    warnings,
    write_documents,
)
from .label_noise import LabelNoise, label_noise_of
from .manifest import EditFacts, LayerFacts, Manifest
from .models import Model
from .models.export import check_export, export
from .report import Example, find_examples
from .shipped_files import DEMO_SET
from .statistics.batches import Progress
from .statistics.embeddings import PairEmbeddings
from .statistics.passes import Reducer
from .statistics.sources import keep_for
from .tuning.budgets import Budget
from .tuning.choosing import SearchRequest
from .tuning.defaults import OBJECTIVE, TRIALS

DEMO_MASS = 0.1  # chosen on the split val by calibration/build/choose_demo.py


@dataclass(frozen=True)
class Recipe(Inputs):
    """Everything that decides an edit. The fields are the flags of `uwm edit`.

    Attributes:
        method: The editor's name, see `uwm.editing.editors.find_editors`; None for uwm, with `max_loss` the best.
        settings: Its settings by name; what is not given the editor decides, or with `max_loss` the search.
        max_loss: What may be lost, see `uwm.expressions.parse_max_loss`; method and settings are then chosen by
            cross-validation on the calibration pairs.
        objective: What is made best within it, see `uwm.expressions.parse_objective`.
        trials: How many edits are tried for that.
        until_stable: Use only so many pairs that the edit from half of them agrees so well with that from all of them,
            see `uwm.editing.stability`; None for all pairs.
        preserve: Safe captions and images without partners, see `uwm.calibration.read_preservation`.
        beside: Further methods with their own settings, fitted to the same pairs and measured beside the edit.
        also_export: Write a CLIP in the other layout too, ``hf`` or ``open_clip``.
        again: Edit a checkpoint that uwm has edited already.
    """

    method: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    max_loss: str | None = None
    objective: str = OBJECTIVE
    trials: int = TRIALS
    until_stable: float | None = None
    preserve: str | None = None
    beside: tuple[str, ...] = ()
    also_export: str | None = None
    again: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a run made: the patch, the results by evaluation set and column, the manifest, and warnings."""

    patch: Patch
    results: dict[str, dict[str, EvalResult]]
    manifest: Manifest
    warnings: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Edit:
    """One editor on its way: what the pass gathers for it, and the patches that came of it.

    Attributes:
        editor, settings: What edits, and how.
        statistics: What it asked of the pass.
        proposal: What it proposes.
        patch: The edit, fitted to the model's checkpoint.
        control: The random control of equal kind and size.
    """

    editor: Editor
    settings: Any
    statistics: Statistics
    proposal: Proposal
    patch: Patch
    control: Patch


@dataclass(frozen=True)
class Fitted:
    """The edits of a recipe.

    Attributes:
        edits: By the editors' names, the recipe's own first.
        told: What a user should know.
        calibration: The pairs that they learnt from.
        stable: How these were found to be enough; None where all were used.
    """

    edits: dict[str, Edit]
    told: tuple[str, ...]
    calibration: CalibrationSet
    stable: UntilStable | None = None


def run(
    recipe: Recipe,
    output: Path | None = None,
    *,
    overwrite: bool = False,
    show_examples: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Gather statistics, edit, measure before and after and against a random control, and write.

    Args:
        recipe: The settings.
        output: The folder to write; None writes nothing (a dry run).
        overwrite: Replace an output that exists.
        show_examples: Show captions and images of the evaluation set in report.html.
        progress: As in `uwm.score`.

    Raises:
        UwmError: Of every kind; whatever happens, an earlier output stays whole until the new one is verified.
    """
    clock = Clock()
    recipe, request = _check(recipe, output, overwrite)
    with clock("read"):
        sets = read_all(recipe, recipe.preserve)
        budget = None if request is None else Budget.of(request, sets, recipe.seed)
    with clock("load"):
        model, reached = _load(recipe, sets)
    if budget is not None:
        with clock("choose"):
            choice = budget.choose(recipe, model, progress)
            recipe = replace(recipe, method=choice.chosen.method, settings=choice.chosen.settings)
    with clock("edit"):
        kept = PairEmbeddings()
        fitted = make_edits(recipe, model, sets.calibration, progress, sets.preserve, also=[kept])
        edit, noise = fitted.edits[recipe.method or DEFAULT], label_noise_of(kept, fitted.calibration)
    with clock("evaluate"):
        data_sets = sets.data_sets if budget is None else budget.measuring
        results = measure(recipe, _columns(model, fitted.edits), sets.held_out, data_sets, progress)
        examples = _examples(recipe, model, edit, sets.held_out, results) if show_examples else []
    manifest = _manifest(recipe, model, sets, edit, results) | _where_there_are(noise, sets.preserve, fitted.stable)
    made = fitted.told
    if budget is not None:
        manifest["budget"] = budget.facts(choice, results)
        made = (*budget.told, *choice.told, *made)
    if output is not None:
        with clock("write"), new_folder(output) as folder:
            manifest["output_sha256"] = _write_weights(folder, model, edit.patch, recipe.also_export)
            write_documents(folder, manifest, results, clock, examples)
    manifest["run"] = clock.report()
    told = (*edit.proposal.warnings, *made, *warnings(model, (*sets.checked.told, *reached), results))
    return Outcome(edit.patch, results, manifest, told)


def _load(recipe: Recipe, sets: Sets) -> tuple[Model, tuple[str, ...]]:
    """The model, and what it cannot tell apart in the sets. Raises UwmError."""
    model = load_model(recipe, keep=True)
    sets.check_images(model, recipe.workers)
    told = check_sets_with(recipe, model, {"calibration": sets.calibration, **sets.held_out}, sets.data_sets)
    if recipe.also_export is not None:
        check_export(model, recipe.also_export)
    return model, told


def _check(recipe: Recipe, output: Path | None, overwrite: bool) -> tuple[Recipe, SearchRequest | None]:
    """Refuse what cannot work before anything is read; return what is to be done, with the default method if needed."""
    request = _wish(recipe)
    check_share(recipe.until_stable)
    if recipe.until_stable is not None and request is not None:
        raise BadInput("--until-stable: --max-loss measures all pairs under many edits; give one of the two")
    if request is not None:
        request.check()
    elif recipe.method is None:
        recipe = replace(recipe, method=DEFAULT)
    for editor in [find_editor(recipe.method)] if recipe.method else []:
        _check_editor(recipe, editor)
    model = check_paths(recipe, output, overwrite, recipe.preserve)
    if not recipe.again:
        _refuse_edited(model)
    return recipe, request


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


def make_edits(
    recipe: Recipe,
    model: Model,
    calibration: CalibrationSet,
    progress: Progress | None = None,
    preserve: Preservation | None = None,
    also: Sequence[Reducer] = (),
) -> Fitted:
    """The recipe's edit by its method and those beside it, from as few passes as can.

    Args:
        also: Further reducers of the first pass.

    Raises:
        BadInput: The recipe's own method cannot work with the model or the set, or has no use for `preserve`.
    """
    told, own = [], recipe.method or DEFAULT
    stable = _until_stable(recipe, model, own)
    pairs = about(calibration) if stable is None else stable.pairs(calibration)
    asked: dict[str, tuple[Editor, Any, Statistics]] = {}
    for name in dict.fromkeys((own, *recipe.beside)):
        editor = find_editor(name)
        chosen = settings.make(editor, recipe.settings if name == own else {})
        try:
            asked[name] = editor, chosen, editor.statistics(model, pairs, chosen)
        except BadInput:
            if name == own:
                raise  # a method beside it that has no use for this model or set is left out
    if stable is not None and asked[own][2].joint:
        raise BadInput(f"--until-stable: {own} takes the gradients of all pairs at once; use --limit")
    passed: dict[str, Any] = {"batch_size": recipe.batch_size, "workers": recipe.workers, "progress": progress}
    for group in _passes([statistics for _, _, statistics in asked.values()], preserve is not None):
        others = [reducer for statistics in group[1:] for reducer in statistics.reducers.values()]
        kept = preserve if group[0].preserve or group[0] is asked[own][2] else None
        until = stable.parts if stable is not None and group[0] is asked[own][2] else None
        passed |= {"also": [*others, *also], "preserve": kept, "parts": until}
        calibration = gather(model, group[0], calibration, **passed)
        for statistics in group[1:]:
            statistics.pairs = group[0].pairs
        also = ()
    edits = {}
    for name, parts in asked.items():
        try:
            edits[name] = _edited(recipe, model, calibration, *parts)
        except (BadInput, InvalidResult) as error:  # some see only now that they have no use for this model
            if name == own:
                raise
            told.append(f"{name} is not measured beside the edit: {error}")
    return Fitted(edits, (*told, *model.idle(edits[own].patch.changes)), calibration, stable)


def _until_stable(recipe: Recipe, model: Model, own: str) -> UntilStable | None:
    if recipe.until_stable is None:
        return None
    editor = find_editor(own)
    return UntilStable(model, editor, settings.make(editor, recipe.settings), recipe.seed, recipe.until_stable)


def _passes(asked: list[Statistics], preserving: bool) -> list[list[Statistics]]:
    """Statistics that one pass can gather together: of the same towers, pair by pair; the recipe's own come first."""
    groups: dict[Any, list[Statistics]] = {}
    for number, statistics in enumerate(asked):
        alone = statistics.joint or (preserving and bool(statistics.preserve))
        groups.setdefault(number if alone else statistics.towers, []).append(statistics)
    return [*groups.values()]


def _edited(
    recipe: Recipe, model: Model, calibration: CalibrationSet, editor: Editor, chosen: Any, statistics: Statistics
) -> Edit:
    """What an editor makes of fed statistics."""
    proposal = editor.edit(model, statistics, chosen, recipe.seed)
    about = recipe_of(editor, chosen, statistics, proposal, calibration.fingerprint(), recipe.seed)
    control = editor.control(model, statistics, chosen, recipe.seed)
    drawn = {"method": "random", "seed": recipe.seed}
    assert model.checkpoint is not None
    return Edit(
        editor,
        chosen,
        statistics,
        proposal,
        fit(model.checkpoint, make_patch(model, proposal, about))[0],
        make_patch(model, replace(control, settings={}), drawn),
    )


def demo_recipe(**given: Any) -> Recipe:
    """`uwm demo`: the shipped model and set, measured on the test split and on the unseen style."""
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


def _columns(model: Model, edits: Mapping[str, Edit]) -> Iterator[tuple[str, AbstractContextManager[Model]]]:
    """The unedited model, the edit under its method's name, its control, and the methods beside it."""
    keep_for(model, [patch.changes for edit in edits.values() for patch in (edit.patch, edit.control)])
    (name, edit), *others = edits.items()
    yield "before", nullcontext(model)
    yield name, patched(model, edit.patch)
    yield "random" if name != "random" else "random again", patched(model, edit.control)
    yield from ((other, patched(model, beside.patch)) for other, beside in others)


def _examples(
    recipe: Recipe, model: Model, edit: Edit, held_out: Mapping[str, CalibrationSet], results: Mapping
) -> list[Example]:
    """What queries of the first measured set find before and after; none where nothing was measured."""
    if not results:
        return []
    name = next(iter(results))
    pairs, embeddings = quadruples(held_out[name]), {}
    for column, patch in (("before", None), (edit.editor.name, edit.patch)):
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
    manifest = describe_inputs(recipe, model, sets.calibration, edit.statistics.pairs, patch.recipe["calibration"])
    unused = () if recipe.max_loss else ("max_loss", "objective", "trials")
    for name in ("settings", *unused, *(() if recipe.until_stable else ("until_stable",))):
        del manifest["settings"][name]
    manifest["settings"] |= asdict(edit.settings) | edit.proposal.settings
    manifest["edit"] = cast(
        EditFacts, {"title": edit.editor.title, "source": edit.editor.source, **edit.proposal.report}
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
