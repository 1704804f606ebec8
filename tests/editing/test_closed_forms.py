"""The closed-form editors from pairs to an edited model: what each promises, its control, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import uwm
from uwm.calibration import Preservation
from uwm.editing.changes import AddLowRank, Scale, SetEntries
from uwm.editing.closed_form import ablate, hidden_units, null_space, redirect
from uwm.editing.editors import PARTS, Pairs
from uwm.editing.live import patched
from uwm.editing.making import about, gather, make_patch
from uwm.editing.settings import make
from uwm.embedding import embed
from uwm.errors import BadInput, InvalidResult
from uwm.weights import WeightId

EDITORS = {module.EDITOR.name: module.EDITOR for module in (ablate, hidden_units, null_space, redirect)}
WRONG = [
    ("ablate", {"weight": 0}), ("ablate", {"weight": 2.5}), ("ablate", {"depth": 0}), ("ablate", {"depth": 1.1}),
    ("ablate", {"first": 1}), ("ablate", {"first": -0.1}), ("ablate", {"towers": "audio"}),
    ("redirect", {"keep": -1}), ("redirect", {"ridge": 0}), ("redirect", {"rank": 0}), ("redirect", {"tokens": "some"}),
    ("null-space", {"rank": 0}), ("null-space", {"retain": -1}), ("null-space", {"weight": -1}),
    ("hidden-units", {"top": 0}), ("hidden-units", {"top": 1.5}), ("hidden-units", {"factor": 1e5}),
]  # fmt: skip


@pytest.fixture
def model(tiny_hf):
    return uwm.load(tiny_hf)


@pytest.fixture
def calib(tiny_set):
    return uwm.read_calibration(tiny_set)


def fed(name, model, calib, batch_size=10, **given):
    editor = EDITORS[name]
    settings = make(editor, given)
    statistics = editor.statistics(model, about(calib), settings)
    gather(model, statistics, calib, batch_size=batch_size)
    return editor, statistics, settings


def proposed(name, model, calib, **given):
    editor, statistics, settings = fed(name, model, calib, **given)
    return editor.edit(model, statistics, settings)


def embeddings(model, calib, proposal):
    """Text and image embeddings of both sides with an edit."""
    with patched(model, make_patch(model, proposal, {"method": "test"})):
        return embed(model, calib)


def arrays(change):
    return [bits.array for bits in change.stored()[0].values()]


@pytest.mark.parametrize("editor", EDITORS.values(), ids=EDITORS)
def test_what_people_read_of_it(editor):
    assert all(isinstance(getattr(editor, part), kind) for part, kind in PARTS.items())
    assert editor.measured(editor.Settings())[0] == editor.name


@pytest.mark.parametrize("name", EDITORS)
def test_an_edit_changes_the_model_and_does_not_depend_on_the_batches(name, model, calib):
    before = embed(model, calib)
    whole, parts = (proposed(name, model, calib, batch_size=size) for size in (24, 7))
    assert whole.changes.keys() == parts.changes.keys()
    for weight, change in whole.changes.items():
        for a, b in zip(arrays(change), arrays(parts.changes[weight]), strict=True):
            if isinstance(change, Scale):
                assert np.array_equal(a, b)
    one, other = (embeddings(model, calib, proposal) for proposal in (whole, parts))
    for field in vars(one):
        torch.testing.assert_close(getattr(one, field), getattr(other, field), rtol=0, atol=1e-3)
    assert any((getattr(one, f) - getattr(before, f)).abs().max() > 0.02 for f in vars(one))


@pytest.mark.parametrize("name", EDITORS)
def test_the_control_is_of_equal_kind_and_size(name, model, calib):
    editor, statistics, settings = fed(name, model, calib)
    real, control = editor.edit(model, statistics, settings), editor.control(model, statistics, settings, seed=1)
    again, other = (editor.control(model, statistics, settings, seed=seed) for seed in (1, 2))
    assert real.changes.keys() == control.changes.keys()
    for weight, change in real.changes.items():
        drawn = control.changes[weight]
        assert type(drawn) is type(change)
        assert [a.shape for a in arrays(drawn)] == [a.shape for a in arrays(change)]
        assert all(np.array_equal(a, b) for a, b in zip(arrays(drawn), arrays(again.changes[weight]), strict=True))
    first = next(iter(real.changes))
    assert not np.array_equal(arrays(real.changes[first])[0], arrays(control.changes[first])[0])
    assert not np.array_equal(arrays(other.changes[first])[0], arrays(control.changes[first])[0])


@pytest.mark.parametrize("name", EDITORS)
def test_one_tower_alone(name, model, calib):
    found = proposed(name, model, calib, towers="text")
    assert {weight.tower for weight in found.changes} == {"text"}


@pytest.mark.parametrize("name", ["ablate", "redirect", "hidden-units"])
def test_a_set_without_images_edits_the_text_tower_only(name, model, calib):
    bare = replace(calib, pairs=tuple(replace(pair, safe_image=None, unsafe_image=None) for pair in calib.pairs))
    assert {weight.tower for weight in proposed(name, model, bare).changes} == {"text"}
    with pytest.raises(BadInput, match=rf"--method {name}: the set has no side for the towers to edit \(vision\)"):
        proposed(name, model, bare, towers="vision")


def test_null_space_needs_captions(model):
    settings = make(null_space.EDITOR, {})
    with pytest.raises(BadInput, match="works from unsafe captions, and the set has no text side"):
        null_space.EDITOR.statistics(model, Pairs(("vision",)), settings)


@pytest.mark.parametrize(("name", "given"), WRONG)
def test_settings_that_cannot_work_are_refused(name, given):
    (key,) = given
    with pytest.raises(BadInput, match=f"--{key} "):
        make(EDITORS[name], given)


def test_a_factor_of_one_is_refused():
    with pytest.raises(InvalidResult, match="--factor 1 changes nothing"):
        make(hidden_units.EDITOR, {"factor": 1})


# ---------------------------------------------------------------- what each promises


def test_ablation_takes_the_step_from_the_residual_stream(model, calib):
    """Reflection (weight 2) of all writers turns round, along r, what every block adds."""
    found = proposed("ablate", model, calib, towers="vision", first=0.5)
    blocks = {weight.block for weight in found.changes}
    assert blocks == {1, 2}  # of three
    slots = {weight.slot for weight in found.changes}
    assert slots == {"out_proj", "out_proj.bias", "fc2", "fc2.bias"}
    assert isinstance(found.changes[WeightId("vision", 2, "fc2")], AddLowRank)
    assert isinstance(found.changes[WeightId("vision", 2, "fc2.bias")], SetEntries)
    left = found.changes[WeightId("vision", 2, "fc2")].left[:, 0]
    with patched(model, make_patch(model, found, {"method": "test"})):
        for weight in found.changes:
            values = model.parameter(weight).double().numpy()
            assert np.abs(left @ values).max() < 1e-5
    assert found.report["towers"]["vision"]["block"] == 2
    assert found.report["towers"]["vision"]["step"] > 0


def test_another_depth_gives_another_direction(model, calib):
    last, middle = (proposed("ablate", model, calib, towers="vision", depth=depth) for depth in (1.0, 0.4))
    assert middle.report["towers"]["vision"]["block"] == 1
    weight = WeightId("vision", 2, "fc2")
    assert not np.allclose(last.changes[weight].left, middle.changes[weight].left, atol=0.05)


def test_redirection_moves_unsafe_captions_to_their_partners_and_keeps_safe_ones(model, calib):
    before = embed(model, calib)
    free = embeddings(model, calib, proposed("redirect", model, calib, keep=0.0, ridge=1e-6))
    kept = embeddings(model, calib, proposed("redirect", model, calib, keep=4.0, ridge=1e-6))
    far = (before.unsafe_text - before.safe_text).norm(dim=1).mean()
    assert (free.unsafe_text - before.safe_text).norm(dim=1).mean() < 0.05 * far
    moved = [(found.safe_text - before.safe_text).norm(dim=1).mean() for found in (free, kept)]
    assert moved[1] < 0.5 * moved[0]


def test_a_preservation_set_is_kept_by_redirection(model, calib):
    """Captions without partners: the text tower moves them less than it would without them."""
    captions = tuple(f"a picture of skull and tree number {n}" for n in range(40, 60))
    editor, statistics, settings = fed("redirect", model, calib, towers="text", keep=4.0, ridge=1e-6)
    alone = editor.edit(model, statistics, settings)
    preserve = Preservation(captions=captions)
    statistics = editor.statistics(model, about(calib), settings)
    gather(model, statistics, calib, batch_size=7, preserve=preserve)
    both = editor.edit(model, statistics, settings)
    tokens = model.tokenize([*captions])
    moved = []
    with torch.no_grad():
        before = model.encode_text(*tokens)
        for proposal in (alone, both):
            with patched(model, make_patch(model, proposal, {"method": "test"})):
                moved.append(float((model.encode_text(*tokens) - before).norm()))
    assert moved[1] < 0.7 * moved[0]


def test_redirection_of_all_tokens_and_of_low_rank(model, calib):
    found = proposed("redirect", model, calib, tokens="all", rank=3, depth=0.5)
    assert {str(weight) for weight in found.changes} == {"text.0.fc2", "vision.1.fc2"}
    assert all(change.left.shape[1] == 3 for change in found.changes.values())
    gains = [part["gain_kept"] for part in found.report["towers"].values()]
    assert all(0 < gain < 1 for gain in gains)
    assert found.settings == {"rank": 3}


def test_images_become_orthogonal_to_the_unsafe_captions(model, calib):
    before = embed(model, calib)
    found = proposed("null-space", model, calib, rank=3)
    after = embeddings(model, calib, found)
    basis = -found.changes[WeightId("vision", None, "proj")].left
    assert np.abs(before.unsafe_image.numpy() @ basis).max() > 0.1
    assert np.abs(after.unsafe_image.numpy() @ basis).max() < 1e-5
    assert torch.equal(after.unsafe_text, before.unsafe_text)
    assert found.report["captions"]["unsafe_energy"] > 0.5


def test_retained_captions_keep_their_similarity(model, calib):
    """What lies in the retained span is untouched; the rank shrinks by nothing, the energy removed does."""
    plain, kept = (proposed("null-space", model, calib, rank=4, retain=retain) for retain in (0, 6))
    safe = embed(model, calib).safe_text.double()
    leading = torch.linalg.svd(safe, full_matrices=False).Vh[:6].T
    basis = torch.from_numpy(kept.changes[WeightId("vision", None, "proj")].left)
    assert (leading.T @ basis).abs().max() < 1e-5
    assert kept.report["captions"]["safe_energy"] < plain.report["captions"]["safe_energy"]


def test_a_tower_without_a_projection_is_refused(model, calib):
    del model.tensors[WeightId("vision", None, "proj")]
    with pytest.raises(BadInput, match="the vision tower has no projection to edit"):
        proposed("null-space", model, calib)


def test_hidden_units_are_silenced(model, calib):
    found = proposed("hidden-units", model, calib, top=0.1)
    for tower, block in (("text", 1), ("vision", 2)):
        weight = WeightId(tower, block, "fc2")
        change = found.changes[weight]
        assert found.notes[weight] == {"units": 6}  # of 64
        with patched(model, make_patch(model, found, {"method": "test"})):
            dead = (model.parameter(weight) == 0).all(0)
        assert int(dead.sum()) == 6
        assert change.factor == 0
        told = found.report["towers"][tower]
        assert 0 < told["least_effect"] <= told["greatest_effect"]
