"""The main job from settings to a folder on disk: `run(Recipe(...))` is what `uwm edit` does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .calibration import CalibrationSet, comes_without_pictures, image_paths, read_calibration
from .checkpoint import check_output, new_folder, open_checkpoint
from .clock import Clock
from .errors import BadInput, InvalidResult
from .evaluate import EvalResult, embed, evaluate, quadruples
from .images import bad_images
from .knowledge import DataSet, open_data_sets
from .label_noise import EmbeddingKeeper
from .models import Model, load
from .models.export import check_export, export
from .models.references import commit_of, hub_name, name_of, resolve
from .patch import PATCH_FILE, Patch, check_settings, patched, random_control, select
from .profiler import BATCH_SIZE, Embedded, Progress
from .records import to_json
from .report import Example, find_examples, html_report, model_card, paired_differences, versions
from .rewrite import fit, write_patched
from .scoring import TEXT_LAYERS, VISION_LAYERS, Scores, check_method, score
from .shipped_files import DEMO_SET

FORMAT = 1
FEW_PAIRS = 16
DEMO_MASS = 0.1  # chosen on the split val by calibration/build/choose_demo.py
CALIBRATION_SPLITS = ("calib", "train")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides an edit. The fields are the flags of `uwm edit`.

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
    method: str = "uwm"
    text_layers: str = TEXT_LAYERS
    vision_layers: str = VISION_LAYERS
    mass: float | None = None
    text_mass: float | None = None
    vision_mass: float | None = None
    alpha: float | None = None
    limit: int | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    revision: str | None = None
    cache_dir: str | None = None
    offline: bool = False
    batch_size: int = BATCH_SIZE
    workers: int = 2
    also_export: str | None = None
    again: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a run made: the patch, the results by evaluation set and column, the manifest, and warnings."""

    patch: Patch
    results: dict[str, dict[str, EvalResult]]
    manifest: dict[str, Any]
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
        show_examples: Show captions and pictures of the evaluation set in report.html.
        progress: As in `uwm.score`.

    Raises:
        UwmError: Of every kind; whatever happens, an earlier output stays whole until the new one is verified.
    """
    clock = Clock()
    _check(recipe, output, overwrite)
    with clock("read"):
        calibration, held_out = read_sets(recipe)
        _refuse_bad_images([calibration, *held_out.values()], recipe.workers)
        data_sets = open_data_sets(
            recipe.zero_shot, data_root=recipe.data_root, templates=recipe.templates, ensemble=recipe.ensemble
        )
    with clock("load"):
        model = load_model(recipe)
    if recipe.also_export is not None:
        check_export(model, recipe.also_export)
    with clock("score"):
        scores, noise = _score(recipe, model, calibration, progress)
    with clock("select"):
        patch = make_patch(recipe, scores)
    with clock("evaluate"):
        results = _measure(recipe, model, patch, held_out, data_sets, progress)
        examples = _examples(recipe, model, patch, held_out, next(iter(results))) if show_examples and results else []
    manifest = _manifest(recipe, model, calibration, scores, patch, results) | noise
    if output is not None:
        with clock("write"), new_folder(output) as folder:
            _write(folder, model, patch, manifest, results, examples, clock)
            if recipe.also_export is not None:
                with patched(model, patch):
                    export(model, folder, recipe.also_export)
    manifest["run"] = clock.report()
    notes = [note for data in data_sets.values() for note in data.odd]
    return Outcome(patch, results, manifest, (*_warnings(calibration, held_out, results), *notes))


def _check(recipe: Recipe, output: Path | None, overwrite: bool) -> None:
    """Refuse what cannot work before anything is read."""
    check_method(recipe.method)
    check_settings(alpha=recipe.alpha, masses=(recipe.mass, recipe.text_mass, recipe.vision_mass))
    if output is not None:
        sets = (recipe.calib, recipe.eval_set, recipe.safe_images, recipe.unsafe_images, recipe.data_root)
        inputs = [resolve(recipe.model, **_hub(recipe)), *(Path(p) for p in (*sets, *recipe.zero_shot) if p)]
        check_output(output, inputs, overwrite)
    if not recipe.again:
        _refuse_edited(resolve(recipe.model, **_hub(recipe)))


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


def load_model(recipe: Recipe) -> Model:
    """`uwm.load` with the recipe's settings."""
    return load(
        recipe.model,
        arch=recipe.arch,
        quick_gelu=recipe.quick_gelu,
        key=recipe.key,
        device=recipe.device,
        dtype=recipe.dtype,
        **_hub(recipe),
    )


def _hub(recipe: Recipe) -> dict[str, Any]:
    return {"revision": recipe.revision, "cache_dir": recipe.cache_dir, "offline": recipe.offline}


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
        text_layers=recipe.text_layers,
        vision_layers=recipe.vision_layers,
        batch_size=recipe.batch_size,
        workers=recipe.workers,
        progress=progress,
        embedded=embedded,
    )


def _score(
    recipe: Recipe, model: Model, calibration: CalibrationSet, progress: Progress | None
) -> tuple[Scores, dict[str, Any]]:
    """The scores, and what uwm.json says of doubted pairs: nothing where the method makes no embeddings of its own."""
    keeper = EmbeddingKeeper()
    scores = make_scores(recipe, model, calibration, progress, embedded=keeper)
    noise = keeper.label_noise(calibration)
    return scores, {} if noise is None else {"label_noise": noise.as_dict()}


def make_patch(recipe: Recipe, scores: Scores) -> Patch:
    """`uwm.select` with the recipe's settings."""
    return select(
        scores, mass=recipe.mass, text_mass=recipe.text_mass, vision_mass=recipe.vision_mass, alpha=recipe.alpha
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


def calibration_pairs(recipe: Recipe) -> CalibrationSet:
    """All pairs that the recipe may calibrate on: its split, or the calibration split where the set has one."""
    whole = _read_set(recipe, recipe.calib)
    split = recipe.split or next((name for name in CALIBRATION_SPLITS if name in whole.splits()), None)
    return (whole.split(split) if split else whole).limit(recipe.limit, recipe.seed)


def _read_set(recipe: Recipe, path: str) -> CalibrationSet:
    """A set; where there are two, the folders of pictures are for those that come without."""
    if recipe.eval_set and not comes_without_pictures(path):
        return read_calibration(path)
    return read_calibration(path, safe_images=recipe.safe_images, unsafe_images=recipe.unsafe_images)


def read_sets(recipe: Recipe) -> tuple[CalibrationSet, dict[str, CalibrationSet]]:
    """The calibration pairs, and by name the sets to measure on; they share no pair."""
    calibration = calibration_pairs(recipe)
    if not recipe.eval_set and not recipe.eval_splits:
        calibration, held = calibration.holdout(recipe.holdout, recipe.seed)
        return calibration, {"held-out": held}
    other = _read_set(recipe, recipe.eval_set or recipe.calib)
    held_out = {name: other.split(name) for name in recipe.eval_splits} or {other.root.resolve().name: other}
    used = {pair.content() for pair in calibration.pairs}
    for name, held in held_out.items():
        if any(pair.content() in used for pair in held.pairs):
            raise BadInput(f"evaluation set {name!r} holds pairs that calibration uses; choose another --eval-split")
    return calibration, {name: held.limit(recipe.limit, recipe.seed) for name, held in held_out.items()}


def _refuse_bad_images(sets: list[CalibrationSet], workers: int) -> None:
    """Before the model is loaded: name every picture that cannot be read, at once."""
    if bad := bad_images([path for pairs in sets for path in image_paths(pairs.pairs)], workers):
        more = f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise BadInput(f"{len(bad)} bad pictures: " + "; ".join(bad[:5]) + more)


def _measure(
    recipe: Recipe,
    model: Model,
    patch: Patch,
    held_out: Mapping[str, CalibrationSet],
    data_sets: Mapping[str, DataSet],
    progress: Progress | None,
) -> dict[str, dict[str, EvalResult]]:
    """Set -> before, after, random -> result; zero-shot data sets are measured with the first set."""
    if len(model.modalities) < 2:
        return {}
    control = random_control(patch, recipe.seed)
    results: dict[str, dict[str, EvalResult]] = {name: {} for name in held_out}
    for column, edit in (("before", None), ("after", patch), ("random", control)):
        with contextlib.nullcontext() if edit is None else patched(model, edit):
            for number, (name, pairs) in enumerate(held_out.items()):
                if not any(p.has_text and p.has_image for p in pairs.pairs):
                    continue
                results[name][column] = evaluate(
                    model,
                    pairs,
                    data_sets=data_sets if number == 0 else None,
                    batch_size=recipe.batch_size,
                    workers=recipe.workers,
                    seed=recipe.seed,
                    progress=progress,
                )
    return {name: columns for name, columns in results.items() if columns}


def _examples(
    recipe: Recipe, model: Model, patch: Patch, held_out: Mapping[str, CalibrationSet], name: str
) -> list[Example]:
    """What queries of a measured set find before and after."""
    pairs, embeddings = quadruples(held_out[name]), {}
    for column, edit in (("before", None), ("after", patch)):
        with contextlib.nullcontext() if edit is None else patched(model, edit):
            embeddings[column] = embed(model, pairs, batch_size=recipe.batch_size, workers=recipe.workers)
    return find_examples(pairs.pairs, embeddings, recipe.seed)


def _manifest(
    recipe: Recipe, model: Model, calibration: CalibrationSet, scores: Scores, patch: Patch, results: Mapping
) -> dict[str, Any]:
    """The content of uwm.json, but for what differs from run to run."""
    assert model.checkpoint is not None
    counts, settings = patch.counts(), asdict(recipe)
    layers = {
        str(w): {
            "selected": counts[w],
            "of": scores[w].numel(),
            "guards": scores.guards[w],
            "base_sha256": patch.base[w],
        }
        for w in patch.flips
    }
    settings |= {"mass": patch.recipe["mass"], "rule": patch.recipe["rule"], "alpha": patch.alpha}
    name, commit = name_of(recipe.model, model.checkpoint.path), commit_of(model.checkpoint.path)
    settings |= {"model": name, "revision": commit or recipe.revision}
    settings |= dict.fromkeys(("cache_dir", "data_root", "safe_images", "unsafe_images"))
    settings |= {key: Path(settings[key]).resolve().name for key in ("calib", "eval_set", "templates") if settings[key]}
    settings["zero_shot"] = [Path(folder).name for folder in recipe.zero_shot]
    return {
        "format": FORMAT,
        "versions": versions(),
        "settings": settings,
        "model": {
            "name": name,
            "on_hub": hub_name(recipe.model) is not None,
            "layout": model.layout.name,
            "library": model.layout.library,
            "quick_gelu": model.quick_gelu,
            "sha256": model.checkpoint.file_hashes(),
        },
        "calibration": {
            "name": calibration.root.resolve().name,
            "pairs": scores.recipe["pairs"],
            "skipped": calibration.skipped | calibration.missing(),
            "sha256": scores.recipe["calibration"],
        },
        "selected": sum(counts.values()),
        "of": sum(layer["of"] for layer in layers.values()),
        "layers": layers,
        "results": {n: {column: r.as_dict() for column, r in columns.items()} for n, columns in results.items()},
        "differences": {n: paired_differences(columns, recipe.seed) for n, columns in results.items()},
    }


def _write(
    folder: Path, model: Model, patch: Patch, manifest: dict, results: Mapping, examples: list[Example], clock: Clock
) -> None:
    assert model.checkpoint is not None
    manifest["output_sha256"] = write_patched(model.checkpoint, patch, folder)
    for name, config in {} if model.checkpoint.path.is_dir() else model.side_configs().items():
        _write_json(folder / name, config)
    (folder / "README.md").write_text(model_card(manifest, results), "utf-8")
    (folder / "report.html").write_text(html_report(manifest, examples), "utf-8")
    _write_json(folder / "uwm.json", {**manifest, "run": clock.report()})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(to_json(value) + "\n", "utf-8")


def _warnings(calibration: CalibrationSet, held_out: Mapping, results: Mapping) -> Iterator[str]:
    if not results:
        yield "nothing was measured: SafeGround needs captions and pictures, and a model with both towers"
    if len(calibration) < FEW_PAIRS:
        yield f"only {len(calibration)} calibration pairs; scores from fewer than {FEW_PAIRS} are mostly noise"
    yield from calibration.warnings()
    for name, pairs in held_out.items():
        yield from (f"{name}: {line}" for line in replace(pairs, skipped={}).warnings())
