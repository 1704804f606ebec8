"""Training: nothing but the student moves, parts make a whole, a kill changes nothing, and it stops when it should."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, fields, replace

import pytest
import torch
from safetensors.torch import load_file

import uwm
from uwm.backends import Computing, find_backends, train, write_trained
from uwm.backends import training as trainings
from uwm.backends.feeding import Feeder, student_embeddings
from uwm.backends.lora import student_of
from uwm.backends.protocol import TrainingSettings
from uwm.calibration import read_calibration
from uwm.embedding import Embeddings
from uwm.errors import BadInput, InvalidResult
from uwm.statistics.batches import embed_inputs

SMALL = {"epochs": 3, "train_batch": 6, "patience": 0, "rank": 4, "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def model(tiny_hf):
    return uwm.load(tiny_hf)


@pytest.fixture(scope="module")
def sets(tiny_set):
    whole = read_calibration(tiny_set)
    return whole.split("calib"), whole.split("test")


@pytest.fixture(scope="module")
def backend():
    return find_backends()["safe-clip"]


def settings(backend, **changes):
    return replace(backend.settings, **(SMALL | changes))


def run(model, sets, backend, changes=(), **options):
    computing = {f.name: options.pop(f.name) for f in fields(Computing) if f.name in options}
    return train(model, *sets, backend, settings(backend, **dict(changes)), computing=Computing(**computing), **options)


def timeless(history):
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in history]


def same(first, second):
    assert first.adapter.tensors.keys() == second.adapter.tensors.keys()
    assert all(torch.equal(tensor, second.adapter.tensors[name]) for name, tensor in first.adapter.tensors.items())
    assert json.dumps(timeless(first.history)) == json.dumps(timeless(second.history))  # files have them in this order
    assert first.best_epoch == second.best_epoch


@pytest.mark.parametrize("name", ["safe-clip", "safer-clip", "safer-clip-fixed", "shield-clip"])
def test_every_method_lowers_its_loss_and_leaves_the_reference_alone(name, model, sets):
    before = {key: tensor.clone() for key, tensor in model.module.state_dict().items()}
    backend = find_backends()[name]
    # past the curriculum's first two epochs, so that the losses are of the same pairs
    trained = run(model, sets, backend, {"epochs": 6, "learning_rate": 1e-2, "lora_alpha": 4.0, "dropout": 0.0})
    losses = [entry["loss"] for entry in trained.history if entry["pairs"] == 16]
    assert losses[-1] < losses[0]
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.module.state_dict().items())
    assert not any(p.requires_grad for p in model.module.parameters())


def test_the_same_seed_gives_the_same_adapter_and_another_seed_another(model, sets, backend):
    state = torch.get_rng_state()
    first, second, other = (run(model, sets, backend, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    same(first, second)
    assert any(not torch.equal(t, other.adapter.tensors[name]) for name, t in first.adapter.tensors.items())


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_parts_of_a_batch_make_the_whole_batch_s_gradients(micro, model, sets, backend):
    """The contrastive terms compare all pairs of a batch; parts of it must not change that."""
    changes = {"dropout": 0.0, "epochs": 1}
    whole, parts = run(model, sets, backend, changes), run(model, sets, backend, changes, micro_batch=micro)
    for name, tensor in whole.adapter.tensors.items():
        torch.testing.assert_close(parts.adapter.tensors[name], tensor, rtol=1e-3, atol=2e-4)
    assert parts.history[0]["loss"] == pytest.approx(whole.history[0]["loss"], rel=1e-5)


def test_parts_with_dropout_draw_the_same_twice(model, sets, backend):
    """The two passes of a part see the same dropout, so that the loss of the first is differentiated by the second."""
    trained = run(model, sets, backend, {"dropout": 0.5, "epochs": 4, "learning_rate": 1e-2}, micro_batch=2)
    same(trained, run(model, sets, backend, {"dropout": 0.5, "epochs": 4, "learning_rate": 1e-2}, micro_batch=2))
    assert trained.history[-1]["loss"] < trained.history[0]["loss"]


def test_recomputed_activations_change_nothing(model, sets, backend):
    plain, recomputed = (run(model, sets, backend, checkpointing=on) for on in (False, True))
    for name, tensor in plain.adapter.tensors.items():
        torch.testing.assert_close(recomputed.adapter.tensors[name], tensor, rtol=1e-4, atol=1e-5)


def test_bfloat16_goes_the_same_way(model, sets, backend):
    changes = {"epochs": 6, "learning_rate": 1e-2, "dropout": 0.0, "lora_alpha": 4.0}
    exact, rounded = (run(model, sets, backend, changes, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert all(tensor.dtype == torch.float32 for tensor in rounded.adapter.tensors.values())
    for ours, theirs in zip(rounded.history, exact.history, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.02)
    assert rounded.history[-1]["loss"] < rounded.history[0]["loss"]


# ---------------------------------------------------------------- killed and resumed


class Killed(Exception):
    """Stands for a kill: nothing of the run's memory is left, the file is."""


def killed_after(steps):
    def progress(items, total, name):
        yield from itertools.islice(items, steps)
        raise Killed

    return progress


@pytest.mark.parametrize("steps", [1, 3, 4, 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_killed_run_goes_on_to_the_same_end(steps, dtype, model, sets, backend, tmp_path, monkeypatch):
    monkeypatch.setattr(trainings, "SAVE_SECONDS", 0.0)
    whole = run(model, sets, backend, snapshots=(1, 3), dtype=dtype)
    state = tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        run(model, sets, backend, state=state, progress=killed_after(steps), snapshots=(1, 3), dtype=dtype)
    resumed = run(model, sets, backend, state=state, snapshots=(1, 3), dtype=dtype)
    assert resumed.resumed_from == steps // 3  # three steps an epoch
    same(resumed, whole)
    for epoch in (1, 3):
        for name, tensor in whole.snapshots[epoch].tensors.items():
            assert torch.equal(tensor, resumed.snapshots[epoch].tensors[name])


def test_a_finished_run_has_nothing_left_to_do(model, sets, backend, tmp_path):
    state = tmp_path / "run.safetensors"
    first = run(model, sets, backend, state=state)
    again = run(model, sets, backend, state=state, progress=killed_after(0))
    assert again.resumed_from == 3
    same(first, again)


@pytest.mark.parametrize("change", [{"seed": 1}, {"micro_batch": 2}, {"dtype": "bfloat16"}, {"snapshots": (2,)}])
def test_the_state_of_another_run_is_refused(change, model, sets, backend, tmp_path):
    state = tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        run(model, sets, backend, state=state, progress=killed_after(4))
    with pytest.raises(BadInput, match="run.safetensors: belongs to a run of another model, set or settings"):
        run(model, sets, backend, state=state, **change)


# ---------------------------------------------------------------- when it stops


SCRIPT = TrainingSettings(8, 16, 1e-3, {"move": 1.0, "told": 1.0}, patience=2)


@dataclass(frozen=True)
class Scripted:
    """A backend whose validation follows a script, epoch by epoch; its training loss is a real one."""

    values: tuple[float, ...]
    name: str = "scripted"
    source: str = "this test"
    settings: TrainingSettings = SCRIPT

    def objective(self, frozen, pairs):
        return ScriptedObjective(frozen, self.values if len(pairs) == 8 else (), itertools.count())


@dataclass(frozen=True)
class ScriptedObjective:
    frozen: Embeddings
    values: tuple[float, ...]
    calls: itertools.count

    def rows(self, epoch):
        return torch.arange(len(self.frozen.safe_text))

    def terms(self, student, rows):
        told = self.values[next(self.calls)] - (student.unsafe_text * 0).sum() if self.values else torch.zeros(())
        if self.values:
            return {"told": told}
        return {"move": (student.unsafe_text - self.frozen.safe_text[rows]).square().sum(), "told": told}


@pytest.mark.parametrize(("values", "patience", "epochs", "best"), [
    ((5, 4, 3, 3, 3, 1, 1, 1), 2, 5, 3),  # an equal value is no better one
    ((5, 4, 3, 4, 2, 3, 3, 1), 2, 7, 5),
    ((5, 6, 7, 8, 9, 1, 1, 1), 0, 8, 6),
    ((8, 7, 6, 5, 4, 3, 2, 1), 2, 8, 8),
])  # fmt: skip
def test_it_stops_after_patience_and_keeps_the_best(values, patience, epochs, best, model, sets):
    backend = Scripted(tuple(float(value) for value in values))
    trained = train(model, *sets, backend, replace(backend.settings, patience=patience), snapshots=range(1, 9))
    assert [entry["validation"] for entry in trained.history] == list(values[:epochs])
    assert trained.best_epoch == best
    assert [*trained.snapshots] == list(range(1, epochs + 1))
    for name, tensor in trained.snapshots[best].tensors.items():
        assert torch.equal(tensor, trained.adapter.tensors[name])


def test_recall_is_validated_on_the_redirected_pairs(model, sets, backend):
    """At the start the student is the frozen model: its recall sum is that of the model's own embeddings."""
    trained = run(model, sets, backend, {"epochs": 1, "learning_rate": 1e-12, "stop_on": "recall"})
    e = uwm.evaluate(model, sets[1])
    assert trained.history[0]["validation"] == pytest.approx(trainings.recall_sum(trained_embeddings(model, sets[1])))
    safe = e.figures["R1_ts_vs"][0] + e.figures["R1_vs_ts"][0]
    assert safe <= trained.history[0]["validation"] <= 6


def trained_embeddings(model, pairs):
    batch = Feeder(model, pairs, 1).batch(torch.arange(len(pairs)))
    with torch.no_grad():
        return student_embeddings(model, batch)


# ---------------------------------------------------------------- what cannot work


@pytest.mark.parametrize(("changes", "words"), [
    ({"epochs": 0}, "--epochs 0: expected at least 1"),
    ({"train_batch": 1}, "--train-batch 1: expected at least 2"),
    ({"rank": 0}, "--rank 0"),
    ({"patience": -1}, "--patience -1"),
    ({"learning_rate": float("nan")}, "--learning-rate nan: expected a positive number"),
    ({"learning_rate": 0.0}, "--learning-rate 0.0"),
    ({"dropout": 1.0}, "--dropout 1.0"),
    ({"stop_on": "hope"}, "--stop-on 'hope': expected loss or recall"),
    ({"targets": ()}, "--targets: expected names of layers"),
    ({"targets": ("k_proj", "knee_proj")}, "--targets 'knee_proj': no layer has this name; expected some of .*v_proj"),
    ({"weights": {}}, "backend 'safe-clip': its settings have no weight for the term 'keep_safe_image'"),
])  # fmt: skip
def test_settings_that_cannot_work_are_refused(changes, words, model, sets, backend):
    with pytest.raises(BadInput, match=words):
        run(model, sets, backend, changes)


def test_other_precisions_are_refused(model, sets, backend):
    with pytest.raises(BadInput, match="--dtype 'float16': fine-tuning computes in float32 or bfloat16"):
        run(model, sets, backend, dtype="float16")


def test_a_loss_that_blows_up_is_an_error(model, sets, backend):
    with pytest.raises(InvalidResult, match="safe-clip: the loss is not finite .*; lower the learning rate"):
        run(model, sets, backend, {"learning_rate": 1e30})


# ---------------------------------------------------------------- merging


def test_the_merged_checkpoint_is_peft_s_own_merge(model, sets, backend, tmp_path):
    """Slow and obvious: peft merges into a student, whose tensors are compared with those that were written."""
    from peft.tuners.lora import LoraLayer

    trained = run(model, sets, backend, {"learning_rate": 1e-2})
    write_trained(model, trained.adapter, tmp_path)
    student = student_of(model, trained.adapter)
    for layer in student.module.modules():
        if isinstance(layer, LoraLayer):
            layer.merge(safe_merge=True)
    merged = {key.replace(".base_layer", ""): t for key, t in student.module.state_dict().items() if "lora_" not in key}
    written, original = load_file(tmp_path / "model.safetensors"), model.checkpoint.state_dict()
    assert written.keys() == original.keys()
    targets = trained.adapter.settings.targets
    adapted = {key for key in merged if key.endswith(".weight") and key.split(".")[-2] in targets}
    assert adapted
    for key, tensor in written.items():
        if key in adapted:
            assert not torch.equal(tensor, original[key])
            torch.testing.assert_close(tensor, merged[key], rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(tensor, original[key])


def test_the_written_model_computes_what_the_student_did(model, sets, backend, tmp_path):
    trained = run(model, sets, backend, {"learning_rate": 1e-2})
    write_trained(model, trained.adapter, tmp_path)
    student = student_of(model, trained.adapter)
    batch = Feeder(model, sets[1], 1).batch(torch.arange(8))
    for inputs, mask in ((batch.input_ids, batch.attention_mask), (batch.pixel_values, None)):
        with torch.no_grad():
            ours, theirs, old = (embed_inputs(side, inputs, mask) for side in (uwm.load(tmp_path), student, model))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        assert (ours - old).norm() > 100 * (ours - theirs).norm()
