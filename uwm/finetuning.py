"""Fine-tuning from settings to a folder on disk, by any backend: what `uwm finetune` does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .backends import Backend, Computing, Trained, TrainingSettings, find_backends, train, write_trained
from .backends.lora import check_installed
from .backends.training import check_training
from .calibration import CalibrationSet
from .checkpoint import check_written, write_edited
from .clock import Clock
from .embedding import embed, quadruples
from .errors import BadInput, InvalidResult
from .evaluation import EvalResult
from .inputs import (
    Inputs,
    SharedImages,
    check_sets,
    check_sets_with,
    describe_inputs,
    describe_results,
    input_paths,
    load_model,
    measure,
    read_data_sets,
    read_sets,
    warnings,
    write_documents,
)
from .manifest import Manifest, TrainingFacts
from .models import Model, load
from .models.student import check_trainable
from .outputs import OutputFolder, output_folder
from .stages import finish, plan
from .statistics.batches import Progress


@dataclass(frozen=True)
class FinetuneRecipe(Inputs):
    """Everything that decides a fine-tuning. The fields are the flags of `uwm finetune`.

    Attributes:
        method: A backend's name, see `uwm.backends.find_backends`.
        validation: Share of the calibration pairs that is not trained on, to stop by.
        epochs … targets: As in `uwm.backends.TrainingSettings`; None for the backend's own.
        dtype, micro_batch, checkpointing: As in `uwm.backends.Computing`.
    """

    method: str = "safe-clip"
    validation: float = 0.1
    epochs: int | None = None
    train_batch: int | None = None
    learning_rate: float | None = None
    patience: int | None = None
    stop_on: str | None = None
    rank: int | None = None
    lora_alpha: float | None = None
    dropout: float | None = None
    targets: tuple[str, ...] = ()
    micro_batch: int | None = None
    checkpointing: bool = False

    def training(self, backend: Backend) -> TrainingSettings:
        """The backend's settings with those that are given here in their place."""
        names = [f.name for f in fields(TrainingSettings) if hasattr(self, f.name)]
        given = {name: getattr(self, name) for name in names if getattr(self, name) not in (None, ())}
        return replace(backend.settings, **given)

    def computing(self) -> Computing:
        """What the backends ask of the machine."""
        return Computing(self.dtype, self.micro_batch, self.checkpointing, self.batch_size, self.workers)


@dataclass(frozen=True)
class Finetuned:
    """What a run made: the adapter and its history, results by evaluation set and column, manifest, and warnings."""

    trained: Trained
    results: dict[str, dict[str, EvalResult]]
    manifest: Manifest
    warnings: tuple[str, ...] = field(default=())


def finetune(
    recipe: FinetuneRecipe, output: Path | None = None, *, overwrite: bool = False, progress: Progress | None = None
) -> Finetuned:
    """Fine-tune, merge, measure before and after, and write a checkpoint like any other.

    A killed run goes on where it was when it is started again with the same settings; until it is done, its state is in
    the file `state_file` names.

    Args:
        recipe: The settings.
        output: The folder to write; None writes nothing (a dry run).
        overwrite: Replace an output that exists.
        progress: As in `uwm.score`.

    Raises:
        UwmError: Of every kind; whatever happens, an earlier output stays whole until the new one is verified.
    """
    backend, settings = _check(recipe)
    paths = input_paths(recipe)
    check_written(paths[0])
    if output is None:
        return _carry_out(recipe, backend, settings, None, progress)
    with output_folder(output, paths, overwrite) as place:
        return _carry_out(recipe, backend, settings, place, progress)


def _carry_out(
    recipe: FinetuneRecipe,
    backend: Backend,
    settings: TrainingSettings,
    place: OutputFolder | None,
    progress: Progress | None,
) -> Finetuned:
    """What `finetune` does after the checks, with the lock of the output held."""
    clock = Clock(progress)
    with clock("read", "reading the sets"):
        calibration, held_out = read_sets(recipe)
        pairs, validation = _split(recipe, calibration)
        data_sets = read_data_sets(recipe)
        checked = check_sets(recipe, pairs, held_out, data_sets, validation=[validation])
    column = sum(4 * len(one) for one in held_out.values()) + sum(map(len, data_sets.values())) + 1
    training = 12 * len(pairs) * settings.epochs + 1  # forward, and twice that back, of four inputs
    few = 0.02 * training
    plan(progress, {"reading the sets": few, "loading the model": few, "training": training, "before": column,
                    "after": column})  # fmt: skip
    with clock("load", "loading the model"):
        model = load_model(replace(recipe, dtype="float32"), reads=calibration)  # the frozen reference
        images = SharedImages([calibration, *held_out.values()], recipe.workers)
        check_trainable(model)
        images.give(model)
        reached = check_sets_with(recipe, model, {"calibration": calibration, **held_out}, data_sets)
        _try_output(recipe, model, pairs, place, images)
    state = state_file(place.output) if place is not None else None
    with clock("train", "training"):
        how: dict[str, Any] = {"seed": recipe.seed, "computing": recipe.computing(), "state": state}
        trained = train(model, pairs, validation, backend, settings, progress=progress, **how)
    manifest = describe_inputs(recipe, model, calibration, {"both": len(pairs)}, calibration.fingerprint())
    manifest["training"] = _training(backend, settings, trained, len(validation))
    with _folder(place) as folder:
        with clock("write"):
            manifest["output_sha256"] = write_trained(model, trained.adapter, folder)
        with clock("evaluate"):
            results = measure(recipe, _columns(recipe, model, folder, images), held_out, data_sets, progress)
        manifest |= describe_results(results, recipe.seed, checked.shared)
        write_documents(folder, model, manifest, results, clock)
    if state is not None:
        state.unlink(missing_ok=True)
    manifest["run"] = clock.report()
    finish(progress)
    notes = () if place is None else place.notes
    remarks = [*notes, *warnings(model, (*checked.told, *reached), results)]
    if trained.resumed_from:
        remarks.append(f"went on after epoch {trained.resumed_from} of an earlier run")
    return Finetuned(trained, results, manifest, tuple(remarks))


def state_file(output: Path) -> Path:
    """Where a run keeps what it needs to go on after a kill: beside its output."""
    return output.with_name(f"{output.name}.training.safetensors")


def find_backend(name: str) -> Backend:
    """A backend by its name. Raises BadInput."""
    there = find_backends()
    if name not in there:
        raise BadInput(f"--method {name!r}: expected one of {', '.join(sorted(there))}")
    return there[name]


def _check(recipe: FinetuneRecipe) -> tuple[Backend, TrainingSettings]:
    """Refuse what cannot work before anything is read."""
    check_installed()
    backend = find_backend(recipe.method)
    settings = recipe.training(backend)
    check_training(settings, recipe.computing())
    return backend, settings


def _split(recipe: FinetuneRecipe, calibration: CalibrationSet) -> tuple[CalibrationSet, CalibrationSet]:
    """The pairs to train on and those to stop by; both have captions and images."""
    whole = quadruples(calibration)
    if len(whole) < 3:
        raise BadInput(f"{whole.root}: {len(whole)} pairs with captions and images; fine-tuning needs at least 3")
    return whole.holdout(recipe.validation, recipe.seed, "--validation")


def _try_output(
    recipe: FinetuneRecipe, model: Model, pairs: CalibrationSet, output: OutputFolder | None, images: SharedImages
) -> None:
    """Write the untrained model as the trained one will be, load it, and embed a pair: all that the end needs.

    Raises:
        ResourceFault: The disk has no room, or cannot be written. BadInput: The output cannot be loaded or used.
        InvalidResult: It computes something else than the input.
    """
    assert model.checkpoint is not None
    first = replace(pairs, pairs=pairs.pairs[:1])
    with TemporaryDirectory() if output is None else output.trial() as place:
        write_edited(model.checkpoint, {}, Path(place), with_config=True)
        model.write_side_files(Path(place))
        try:
            written = images.give(load(place, device=recipe.device, offline=recipe.offline))
            found = [vars(embed(side, first, batch_size=1)) for side in (model, written)]
        except BadInput as error:
            raise BadInput(
                f"the fine-tuned model could not be loaded and measured, so it is not trained: {error}"
            ) from None
    for side, ours in found[0].items():
        off = float((ours - found[1][side]).norm())
        if not off < 1e-3:
            raise InvalidResult(f"the output would compute something else than the input ({side} is {off:.1e} off)")


@contextmanager
def _folder(output: OutputFolder | None) -> Iterator[Path]:
    """The output in the making; of a dry run, one that vanishes."""
    if output is not None:
        with output.make() as folder:
            yield folder
        return
    with TemporaryDirectory() as folder:
        yield Path(folder)


def _columns(
    recipe: FinetuneRecipe, model: Model, folder: Path, images: SharedImages
) -> Iterator[tuple[str, AbstractContextManager[Model]]]:
    yield "before", nullcontext(model)
    yield "after", nullcontext(images.give(load(folder, device=recipe.device, offline=recipe.offline)))


def _training(backend: Backend, settings: TrainingSettings, trained: Trained, validation: int) -> TrainingFacts:
    """The training, for uwm.json."""
    return {
        "backend": backend.name,
        "source": backend.source,
        "settings": {f.name: getattr(settings, f.name) for f in fields(settings)} | {"targets": [*settings.targets]},
        "parameters": trained.parameters,
        "validation_pairs": validation,
        "best_epoch": trained.best_epoch,
        "history": [{key: value for key, value in entry.items() if key != "seconds"} for entry in trained.history],
    }
