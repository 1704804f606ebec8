"""The main job from settings to a folder on disk: `run(Recipe(...))` is what `uwm edit` does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .calibration import CalibrationSet
from .checkpoint import new_folder, open_checkpoint
from .clock import Clock
from .editing.entries.controls import random_control
from .editing.entries.scoring import TEXT_LAYERS, VISION_LAYERS, Scores, check_method, score
from .editing.entries.select import check_settings, select
from .editing.files import fit, write_patched
from .editing.live import patched
from .editing.patch import PATCH_FILE, Patch
from .errors import BadInput, InvalidResult
from .evaluation import EvalResult, embed, quadruples
from .inputs import (
    Inputs,
    check_paths,
    describe_inputs,
    describe_results,
    load_model,
    measure,
    read_data_sets,
    read_sets,
    refuse_bad_images,
    warnings,
    write_documents,
)
from .label_noise import EmbeddingKeeper
from .manifest import LayerFacts, Manifest
from .models import Model
from .models.export import check_export, export
from .records import to_json
from .report import Example, find_examples
from .shipped_files import DEMO_SET
from .statistics.batches import Progress
from .statistics.passes import Embedded

DEMO_MASS = 0.1  # chosen on the split val by calibration/build/choose_demo.py


@dataclass(frozen=True)
class Recipe(Inputs):
    """Everything that decides an edit. The fields are the flags of `uwm edit`."""

    method: str = "uwm"
    variant: str | None = None
    text_layers: str = TEXT_LAYERS
    vision_layers: str = VISION_LAYERS
    mass: float | None = None
    text_mass: float | None = None
    vision_mass: float | None = None
    alpha: float | None = None
    rule: str | None = None
    also_export: str | None = None
    again: bool = False


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
) -> Outcome:
    """Score, select, measure before and after and against a random control, and write.

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
    _check(recipe, output, overwrite)
    with clock("read"):
        calibration, held_out = read_sets(recipe)
        refuse_bad_images([calibration, *held_out.values()], recipe.workers)
        data_sets = read_data_sets(recipe)
    with clock("load"):
        model = load_model(recipe)
    if recipe.also_export is not None:
        check_export(model, recipe.also_export)
    with clock("score"):
        scores, noise = _score(recipe, model, calibration, progress)
    with clock("select"):
        patch = make_patch(recipe, scores)
    with clock("evaluate"):
        results = measure(recipe, _columns(recipe, model, patch), held_out, data_sets, progress)
        examples = _examples(recipe, model, patch, held_out, next(iter(results))) if show_examples and results else []
    manifest = _manifest(recipe, model, calibration, scores, patch, results) | noise
    if output is not None:
        with clock("write"), new_folder(output) as folder:
            manifest["output_sha256"] = _write_weights(folder, model, patch, recipe.also_export)
            write_documents(folder, manifest, results, clock, examples)
    manifest["run"] = clock.report()
    return Outcome(patch, results, manifest, tuple(warnings(calibration, held_out, results, data_sets)))


def _check(recipe: Recipe, output: Path | None, overwrite: bool) -> None:
    """Refuse what cannot work before anything is read."""
    check_method(recipe.method, recipe.variant)
    masses = (recipe.mass, recipe.text_mass, recipe.vision_mass)
    check_settings(alpha=recipe.alpha, masses=masses, rule=recipe.rule)
    model = check_paths(recipe, output, overwrite)
    if not recipe.again:
        _refuse_edited(model)


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


def make_scores(
    recipe: Recipe,
    model: Model,
    calibration: CalibrationSet,
    progress: Progress | None,
    embedded: Embedded | None = None,
) -> Scores:
    """`uwm.score` with the recipe's settings."""
    return score(
        model,
        calibration,
        method=recipe.method,
        variant=recipe.variant,
        text_layers=recipe.text_layers,
        vision_layers=recipe.vision_layers,
        batch_size=recipe.batch_size,
        workers=recipe.workers,
        progress=progress,
        embedded=embedded,
    )


def _score(
    recipe: Recipe, model: Model, calibration: CalibrationSet, progress: Progress | None
) -> tuple[Scores, Manifest]:
    """The scores, and what uwm.json says of doubted pairs: nothing where the method makes no embeddings of its own."""
    keeper = EmbeddingKeeper()
    scores = make_scores(recipe, model, calibration, progress, embedded=keeper)
    noise = keeper.label_noise(calibration)
    return scores, {} if noise is None else {"label_noise": noise.as_dict()}


def make_patch(recipe: Recipe, scores: Scores) -> Patch:
    """`uwm.select` with the recipe's settings."""
    return select(
        scores,
        mass=recipe.mass,
        text_mass=recipe.text_mass,
        vision_mass=recipe.vision_mass,
        alpha=recipe.alpha,
        rule=recipe.rule,
    )


def demo_recipe(**settings: Any) -> Recipe:
    """`uwm demo`: the shipped model and set, measured on the test split and on the unseen style."""
    if settings.get("mass") is None:
        settings["mass"] = DEMO_MASS
    return Recipe(
        model="demo",
        calib=str(DEMO_SET),
        split="calib",
        eval_splits=("test", "test-style"),
        zero_shot=tuple(str(DEMO_SET / "zero_shot" / name) for name in ("seen", "unseen")),
        **settings,
    )


def _columns(recipe: Recipe, model: Model, patch: Patch) -> Iterator[tuple[str, AbstractContextManager[Model]]]:
    yield "before", nullcontext(model)
    yield "after", patched(model, patch)
    yield "random", patched(model, random_control(patch, recipe.seed))


def _examples(
    recipe: Recipe, model: Model, patch: Patch, held_out: Mapping[str, CalibrationSet], name: str
) -> list[Example]:
    """What queries of a measured set find before and after."""
    pairs, embeddings = quadruples(held_out[name]), {}
    for column, edit in (("before", None), ("after", patch)):
        with nullcontext() if edit is None else patched(model, edit):
            embeddings[column] = embed(model, pairs, batch_size=recipe.batch_size, workers=recipe.workers)
    return find_examples(pairs.pairs, embeddings, recipe.seed)


def _manifest(
    recipe: Recipe, model: Model, calibration: CalibrationSet, scores: Scores, patch: Patch, results: Mapping
) -> Manifest:
    """The content of uwm.json, without `run`."""
    counts = patch.counts()
    layers: dict[str, LayerFacts] = {
        str(w): {
            "selected": counts[w],
            "of": scores[w].numel(),
            "guards": scores.guards[w],
            "base_sha256": patch.base[w],
        }
        for w in patch.flips
    }
    manifest = describe_inputs(recipe, model, calibration, scores.recipe["pairs"], scores.recipe["calibration"])
    manifest["settings"] |= {"mass": patch.recipe["mass"], "rule": patch.recipe["rule"], "alpha": patch.alpha}
    manifest["settings"]["variant"] = scores.variant
    return (
        manifest
        | describe_results(results, recipe.seed)
        | {
            "selected": sum(counts.values()),
            "of": sum(layer["of"] for layer in layers.values()),
            "layers": layers,
        }
    )


def _write_weights(folder: Path, model: Model, patch: Patch, also_export: str | None) -> dict[str, str]:
    """The edited weights with all that is needed to load them, and the export -> sha256 by file name."""
    assert model.checkpoint is not None
    hashes = write_patched(model.checkpoint, patch, folder)
    for name, config in {} if model.checkpoint.path.is_dir() else model.side_configs().items():
        (folder / name).write_text(to_json(config) + "\n", "utf-8")
    if also_export is not None:
        with patched(model, patch):
            hashes |= export(model, folder, also_export)
    return hashes
