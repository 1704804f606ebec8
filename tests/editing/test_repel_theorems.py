"""What repel promises, on real models of two libraries, live and through files."""

from __future__ import annotations

import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from telling_pairs import fed, patch_of, proposed, reordered, swapped, telling_set, values

import uwm
from uwm.calibration import Preservation
from uwm.checkpoint import open_checkpoint
from uwm.editing.changes import SetEntries
from uwm.editing.closed_form.repel import EDITOR
from uwm.editing.closed_form.repel_fit import KAPPA, Fit
from uwm.editing.closed_form.repel_maths import empty_direction, threshold
from uwm.editing.editors import Proposal
from uwm.editing.patch import Patch
from uwm.errors import InvalidResult
from uwm.images import load_image
from uwm.shipped_files import DEMO_SET
from uwm.weights import WeightId

TOWERS = ("text", "vision")
SIDES = ("safe", "unsafe")


@pytest.fixture(scope="module")
def telling(tmp_path_factory):
    return telling_set(tmp_path_factory.mktemp("sets") / "telling", 40)


@pytest.fixture(scope="module", params=["hf", "open_clip"])
def folder(request, tiny_hf, tiny_open_clip):
    return {"hf": tiny_hf, "open_clip": tiny_open_clip}[request.param]


@pytest.fixture
def model(folder):
    return uwm.load(folder)


@torch.no_grad()
def embedded(model, calib):
    """Tower -> safe and unsafe embeddings, not normalised, float64 [n, dim]."""
    found = {}
    for tower in TOWERS:
        found[tower] = []
        for side in SIDES:
            if tower == "text":
                z = model.encode_text(*model.tokenize([getattr(p, f"{side}_text") for p in calib.pairs]))
            else:
                z = model.encode_image(model.preprocess([load_image(getattr(p, f"{side}_image")) for p in calib.pairs]))
            found[tower].append(z.double())
    return found


def unit_of(model, proposal, tower):
    """fc1, fc2 and the number of the unit."""
    fc1, fc2 = model.last_mlp(tower)
    return fc1, fc2, proposal.report["towers"][tower]["unit"]


def without_unit(model, proposal):
    """The edit that does nothing but set the units' columns to 0."""
    changes = {}
    for tower in TOWERS:
        _, fc2, number = unit_of(model, proposal, tower)
        out, hidden = model.parameter(fc2).shape
        changes[fc2] = SetEntries.of(np.arange(out) * hidden + number, np.zeros(out))
    return Proposal(changes)


def inputs_of_unit(model, proposal, statistics, tower):
    """The overwritten unit's input before its activation, safe and unsafe."""
    fc1, _, _ = unit_of(model, proposal, tower)
    row = torch.from_numpy(values(proposal.changes[fc1]))
    bias = float(values(proposal.changes[WeightId(fc1.tower, fc1.block, "fc1.bias")])[0])
    return [side.double() @ row + bias for side in statistics.reducers["inputs"].sides(fc1)]


@contextmanager
def live(model, proposal):
    with uwm.patched(model, patch_of(model, proposal)):
        yield model


@contextmanager
def filed(model, proposal, out):
    """The same edit through files."""
    uwm.apply(model.checkpoint.path, patch_of(model, proposal), output=out)
    yield uwm.load(out)


def seen(model, calib, proposal, tmp_path=None):
    """Embeddings with an edit, live or (given a folder) through files."""
    with live(model, proposal) if tmp_path is None else filed(model, proposal, tmp_path) as edited:
        return embedded(edited, calib)


@pytest.mark.parametrize("on_files", [False, True], ids=["live", "files"])
def test_an_input_below_the_gate_keeps_its_embedding(model, telling, tmp_path, on_files):
    """Apart from what the overwritten unit carried, and from what QuickGELU lets through just below 0."""
    statistics, settings = fed(model, telling, lean=0, share=0.03)
    proposal = EDITOR.edit(model, statistics, settings)
    after = seen(model, telling, proposal, tmp_path / "out" if on_files else None)
    bare = seen(model, telling, without_unit(model, proposal), tmp_path / "bare" if on_files else None)
    for tower in TOWERS:
        x = torch.cat(inputs_of_unit(model, proposal, statistics, tower))
        a, b = (torch.cat(side[tower]) for side in (after, bare))
        moved = (a - b).norm(dim=1) / b.norm(dim=1)
        through = (x * torch.sigmoid(1.702 * x)).abs() * settings.strength / KAPPA
        assert (moved < 2 * through + 1e-6).all()
        assert (x < -9).sum() >= 5
        assert moved[x < -9].max() < 1e-5
        assert (moved[x > 2] > 0.1).all()
        assert (x > 2).sum() >= 3


@pytest.mark.parametrize("on_files", [False, True], ids=["live", "files"])
def test_without_strength_and_lean_the_unit_is_deleted_and_nothing_else(model, telling, tmp_path, on_files):
    proposal = proposed(model, telling, strength=0, lean=0)
    after = seen(model, telling, proposal, tmp_path / "out" if on_files else None)
    bare = seen(model, telling, without_unit(model, proposal))
    for tower in TOWERS:
        for a, b in zip(after[tower], bare[tower], strict=True):
            assert torch.equal(a, b)


def direction(fit):
    """e, as the captions are pushed."""
    every = [side for tower in TOWERS for side in fit._embeddings.sides(tower)]
    return empty_direction(every, [fit._readout.jacobian(tower) for tower in TOWERS])[0]


def test_above_the_gate_captions_and_images_part_by_what_strength_says(model, telling):
    strength = 0.02  # so small that the LayerNorm is linear
    statistics, settings = fed(model, telling, strength=strength, lean=0)
    fit = Fit(model, statistics, settings, 0)
    proposal = fit.proposal()
    before, after, bare = (
        seen(model, telling, edit) if edit else embedded(model, telling)
        for edit in (None, proposal, without_unit(model, proposal))
    )
    e = direction(fit)
    for tower, sign in (("text", 1), ("vision", -1)):
        x = inputs_of_unit(model, proposal, statistics, tower)[1]
        moved = (after[tower][1] - bare[tower][1])[x > 2]
        along = sign * moved @ e
        assert len(along) > 20
        assert (along > 0).all()
        at_the_mean = along * KAPPA / x[x > 2]  # a ramp
        height = strength * before[tower][0].norm(dim=1).mean()
        assert float(at_the_mean.mean() / height) == pytest.approx(1, abs=0.1)
        beside = (moved - sign * along[:, None] * e).norm(dim=1) / along
        assert beside.mean() < 0.35  # each has its own Jacobian, the edit their mean


def test_the_lean_moves_everything_the_other_way(model, telling):
    statistics, settings = fed(model, telling, strength=0, lean=0.02)
    fit = Fit(model, statistics, settings, 0)
    proposal = fit.proposal()
    before = embedded(model, telling)
    after, bare = (seen(model, telling, edit) for edit in (proposal, without_unit(model, proposal)))
    for tower, sign in (("text", 1), ("vision", -1)):
        step = -sign * torch.cat(after[tower]).sub(torch.cat(bare[tower])) @ direction(fit)
        assert (step > 0).all()
        assert float(step.mean() / before[tower][0].norm(dim=1).mean()) == pytest.approx(0.02, rel=0.08)


def close(one, other, tolerance=1e-5):
    """Whether two proposals set the same entries to the same values."""
    assert one.changes.keys() == other.changes.keys()
    for name, change in one.changes.items():
        assert np.array_equal(change.indices, other.changes[name].indices), name
        a, b = values(change), values(other.changes[name])
        assert np.abs(a - b).max() <= tolerance * np.abs(a).max(), name


def test_neither_batches_nor_order_nor_copies_matter(model, telling):
    preserve = Preservation(("a picture of dog and skull", "a cup and car"), (telling.pairs[1].unsafe_image,))
    other_way = Preservation(preserve.captions[::-1], preserve.images)
    one = proposed(model, telling, 40, preserve)
    close(one, proposed(model, telling, 7, preserve))
    order = np.random.default_rng(0).permutation(len(telling.pairs))
    close(one, proposed(model, reordered(telling, order), 9, other_way))
    twice = Preservation(preserve.captions * 2, preserve.images * 2)
    close(one, proposed(model, reordered(telling, [*order, *range(40)]), 11, twice))
    close(one, proposed(model, reordered(telling, np.repeat(order, 2)), 11, twice))
    with pytest.raises(AssertionError):
        close(one, proposed(model, telling, 40))  # the preservation set does matter


def test_the_same_edit_for_the_same_weights_of_two_libraries(tiny_hf, tiny_open_clip, telling):
    one, other = (proposed(uwm.load(folder), telling) for folder in (tiny_hf, tiny_open_clip))
    for name in one.changes:
        if name.tower == "text" and "fc1" in name.slot:  # the libraries scale pictures otherwise
            np.testing.assert_allclose(values(one.changes[name]), values(other.changes[name]), rtol=0, atol=1e-2)


def test_what_is_preserved_is_touched_less(model, telling):
    """Captions with a knife that are safe all the same, and pictures with red."""
    captions = tuple(p.unsafe_text for p in telling.pairs[:12])
    images = tuple(p.unsafe_image for p in telling.pairs[:12])
    inputs = {}
    for preserve in (None, Preservation(captions, images)):
        statistics, settings = fed(model, telling, preserve=preserve)
        proposal = EDITOR.edit(model, statistics, settings)
        inputs[preserve] = [inputs_of_unit(model, proposal, statistics, t)[1][:12] for t in TOWERS]
    for before, after in zip(*inputs.values(), strict=True):
        assert (after > 0).sum() < (before > 0).sum()
        assert (after < before).double().mean() > 0.9


@pytest.mark.parametrize("safe_weight", [1.0, 4.0])
def test_swapped_sides_turn_the_detector_round(model, telling, safe_weight):
    found = []
    for calib in (telling, swapped(telling)):
        statistics, settings = fed(model, calib, safe_weight=safe_weight, penalty=0.01)
        fit = Fit(model, statistics, settings, 0)
        inputs = statistics.reducers["inputs"]
        for tower in TOWERS:
            rows = {"": torch.arange(40)}
            found += fit._detectors(tower, inputs.sides(model.last_mlp(tower)[0]), [], rows, 0.2)
    for one, other in ((found[0], found[2]), (found[1], found[3])):
        cosine = float(one.weight @ other.weight / one.weight.norm() / other.weight.norm())
        assert cosine == pytest.approx(-1, abs=1e-6 if safe_weight == 1 else 0.3)
        assert other.auc == pytest.approx(one.auc, abs=0.03 if safe_weight == 1 else 0.2)  # folds are scaled apart
        assert threshold(one.safe, 0.2) != threshold(other.safe, 0.2)


# ---------------------------------------------------------------- what moves in a file


@pytest.mark.parametrize("lean", [0, 0.1])
def test_a_row_a_bias_and_a_column_change_and_nothing_else(model, telling, tmp_path, lean):
    proposal = proposed(model, telling, lean=lean)
    source = model.checkpoint.path
    uwm.apply(source, patch_of(model, proposal), output=tmp_path / "out")
    expected = {}
    for tower in TOWERS:
        fc1, fc2, _ = unit_of(model, proposal, tower)
        bias = WeightId(tower, fc1.block, "fc1.bias")
        expected |= {model.checkpoint.tensors[name].key: n for name, n in ((fc1, 32), (bias, 1), (fc2, 32))}
        if lean:
            expected[model.checkpoint.tensors[WeightId(tower, fc2.block, "fc2.bias")].key] = 32
    assert {key: told["differ"] for key, told in uwm.diff(source, tmp_path / "out").items()} == expected
    before, after = open_checkpoint(source), open_checkpoint(tmp_path / "out")
    for tower in TOWERS:
        fc1, fc2, number = unit_of(model, proposal, tower)
        changed = before.matrix(fc1) != after.matrix(fc1)
        assert changed.any(1).nonzero().flatten().tolist() == [number]
        changed = before.matrix(fc2) != after.matrix(fc2)
        assert changed.any(0).nonzero().flatten().tolist() == [number]


FLOATS = [torch.float32, torch.float16, torch.bfloat16]


def cast_folder(source, target, dtype):
    """A copy of a folder with its weights in another type."""
    shutil.copytree(source, target)
    (weights,) = target.glob("*.safetensors")
    save_file({k: v.to(dtype) for k, v in load_file(weights).items()}, weights, metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_type_is_edited_and_given_back_to_the_byte(folder, telling, tmp_path, dtype):
    source = cast_folder(folder, tmp_path / "in", dtype)
    model = uwm.load(source)
    statistics, settings = fed(model, telling)
    proposal = EDITOR.edit(model, statistics, settings)
    assert proposal.report["towers"]["text"]["detector_auc"] > 0.7
    uwm.apply(source, patch_of(model, proposal), output=tmp_path / "out")
    edited = uwm.load(tmp_path / "out")
    with live(model, proposal):
        for name in proposal.changes:
            assert torch.equal(model.parameter(name), edited.parameter(name))
    found, before = embedded(edited, telling), embedded(uwm.load(source), telling)
    for tower in TOWERS:
        caught = inputs_of_unit(model, proposal, statistics, tower)[1] > KAPPA
        moved = (found[tower][1] - before[tower][1]).norm(dim=1) / before[tower][1].norm(dim=1)
        assert moved[caught].min() > 0.1
    uwm.revert(tmp_path / "out", Patch.load(tmp_path / "out"), output=tmp_path / "back")
    (name,) = (path.name for path in source.glob("*.safetensors"))
    assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()


def test_a_value_that_half_precision_cannot_hold_is_refused(tiny_hf, telling, tmp_path):
    """A LayerNorm with tiny gains: the unit has to multiply by much."""
    source = cast_folder(tiny_hf, tmp_path / "in", torch.float16)
    state = load_file(source / "model.safetensors")
    for key in ("text_model.encoder.layers.1.layer_norm2.weight", "text_model.encoder.layers.1.layer_norm2.bias"):
        state[key] *= 2e-5
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    wanted = r"text\.1\.fc1: a new value of .* does not fit into float16; edit a float32 or bfloat16 copy"
    with pytest.raises(InvalidResult, match=wanted):
        proposed(uwm.load(source), telling)


# ---------------------------------------------------------------- the control


@pytest.fixture(scope="module")
def on_demo():
    model, calib = uwm.load("demo"), uwm.read_calibration(DEMO_SET, split="calib")
    return model, *fed(model, calib, 64)


def test_the_control_is_an_edit_of_equal_kind_and_size(model, telling):
    statistics, settings = fed(model, telling)
    edit = EDITOR.edit(model, statistics, settings)
    control, again, other = (EDITOR.control(model, statistics, settings, seed=seed) for seed in (1, 1, 2))
    close(control, again, 0)
    for name, change in edit.changes.items():
        drawn, detector = values(control.changes[name]), name.slot.startswith("fc1")
        assert np.array_equal(control.changes[name].indices, change.indices)
        assert np.allclose(drawn, values(change)) != detector  # it pushes as far, along the same direction
        assert np.allclose(drawn, values(other.changes[name])) != detector


@pytest.mark.slow
def test_the_control_touches_as_many_safe_inputs_and_is_no_safer_than_chance(on_demo):
    """A random unit catches unsafe inputs no more often than safe ones. An unsafe caption then loses its unsafe image
    only where chance touches both and leaves the safe image alone: f² (1 − f) of them."""
    model, statistics, settings = on_demo
    val = uwm.read_calibration(DEMO_SET, split="val")
    before = uwm.evaluate(model, val).figures
    edits = [EDITOR.edit(model, statistics, settings)] + [
        EDITOR.control(model, statistics, settings, seed=seed) for seed in range(3)
    ]
    figures = []
    for proposal in edits:
        for tower in TOWERS:
            told = proposal.report["towers"][tower]
            assert told["safe_touched"] == pytest.approx(settings.share, abs=0.01)
        with live(model, proposal):
            figures.append(uwm.evaluate(model, val).figures)
    by_chance = settings.share**2 * (1 - settings.share)
    for name in ("GS", "PU"):
        mean, _, high = before[name]
        assert figures[0][name][1] > 0.25
        for control in figures[1:]:
            assert control[name][1] <= max(high, mean + 2 * by_chance)
            assert control[name][0] < figures[0][name][0] / 4
