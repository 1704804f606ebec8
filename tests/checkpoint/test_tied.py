"""Tied weights: one stored matrix under several names changes under all of them, and comes back under all."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from random_patches import scale
from safetensors.torch import load_file, save_file
from tiny_files import bits, hf_state

import uwm
from uwm.checkpoint import open_checkpoint, write_edited
from uwm.editing.patch import PATCH_FILE, Patch
from uwm.errors import BadInput
from uwm.weights import WeightId

FC2, FC1 = WeightId("vision", 1, "fc2"), WeightId("vision", 1, "fc1")
KEY, OTHER = "vision_model.encoder.layers.1.mlp.fc2.weight", "another.name.of.it"
FLIPS = torch.tensor([0, 5, 23])


def tied_file(tmp_path, **more):
    state = hf_state()
    state[OTHER] = state[KEY]
    torch.save(state | more, tmp_path / "in.pt")
    return state, tmp_path / "in.pt"


def patch_of(path, weights=(FC2,), alpha=-1.0):
    checkpoint = open_checkpoint(path)
    shapes = {w: tuple(checkpoint.matrix(w).shape) for w in weights}
    base = {w: checkpoint.fingerprint(w) for w in weights}
    return Patch.scaled(dict.fromkeys(weights, FLIPS), alpha=alpha, shapes=shapes, base=base)


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5])
def test_f44_both_names_change_are_recorded_and_come_back(tmp_path, alpha):
    state, path = tied_file(tmp_path)
    uwm.apply(path, patch_of(path, alpha=alpha), output=tmp_path / "out")
    after = load_file(tmp_path / "out" / "model.safetensors")
    expected = state[KEY].clone()
    expected.view(-1)[FLIPS] *= alpha
    assert torch.equal(bits(after[KEY]), bits(expected))
    assert torch.equal(bits(after[OTHER]), bits(expected))
    assert all(torch.equal(bits(after[n]), bits(state[n])) for n in state if n not in (KEY, OTHER))
    written = Patch.load(tmp_path / "out" / PATCH_FILE)
    assert written.aliases == {KEY: [OTHER]}
    uwm.revert(tmp_path / "out", written, output=tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == state.keys()
    assert all(torch.equal(bits(back[name]), bits(state[name])) for name in state)


def test_only_the_very_same_view_is_tied(tmp_path):
    state, wide = hf_state(), torch.arange(48.0).reshape(6, 8)
    state[KEY] = wide[:4, :6]
    near = {"part": wide[:4, 1:7], "turned": wide[:4, :6].T, "all": wide, "equal": wide[:4, :6].clone()}
    torch.save(state | near, tmp_path / "in.pt")
    assert open_checkpoint(tmp_path / "in.pt").aliases == {}
    uwm.apply(tmp_path / "in.pt", patch_of(tmp_path / "in.pt"), output=tmp_path / "out")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in near.items())
    assert not torch.equal(after[KEY], state[KEY])


def test_three_names_of_one_matrix_in_a_legacy_file(tmp_path):
    state = hf_state()
    state |= {OTHER: state[KEY], "third": state[KEY]}
    torch.save(state, tmp_path / "in.pt", _use_new_zipfile_serialization=False)
    assert open_checkpoint(tmp_path / "in.pt").aliases[KEY] == sorted([OTHER, "third"])
    uwm.apply(tmp_path / "in.pt", patch_of(tmp_path / "in.pt"), output=tmp_path / "out")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(after[KEY], after["third"])
    assert torch.equal(after[KEY], after[OTHER])
    assert not torch.equal(after[KEY], state[KEY])


def test_two_edits_of_one_matrix_are_refused(tmp_path):
    state = hf_state(width=4, inner=4)
    other = "vision_model.encoder.layers.0.mlp.fc2.weight"
    state[other] = state[KEY]
    torch.save(state, tmp_path / "in.pt")
    patch = patch_of(tmp_path / "in.pt", [FC2, WeightId("vision", 0, "fc2")])
    patch = replace(patch, changes=dict.fromkeys(patch.changes, scale(FLIPS[:2])))
    with pytest.raises(BadInput) as caught:
        uwm.apply(tmp_path / "in.pt", patch, output=tmp_path / "out")
    assert "are one tied matrix, which cannot be edited twice; choose one of them with --text-layers" in str(
        caught.value
    )
    assert KEY in str(caught.value)
    assert other in str(caught.value)
    assert os.listdir(tmp_path) == ["in.pt"]


def test_tied_names_that_were_untied_since_are_not_reverted(tmp_path):
    _, path = tied_file(tmp_path)
    uwm.apply(path, patch_of(path), output=tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    after = load_file(file)
    after[OTHER] = after[OTHER] + 1
    save_file(after, file, metadata={"format": "pt"})
    with pytest.raises(BadInput, match=f"{KEY} and {OTHER} were one tied matrix and differ now"):
        uwm.revert(tmp_path / "out", Patch.load(tmp_path / "out"), output=tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("alias", ["absent", "logit_scale", "text_projection.weight"])
def test_a_patch_cannot_reach_tensors_that_were_never_tied(tmp_path, alias):
    state = hf_state()
    save_file(state, tmp_path / "in.safetensors", metadata={"format": "pt"})
    (tmp_path / "out").mkdir()
    plan = {FC2: scale(FLIPS)}
    if alias == "absent":  # another spelling of the same weights
        write_edited(open_checkpoint(tmp_path / "in.safetensors"), plan, tmp_path / "out", {KEY: [alias]})
        return
    with pytest.raises(BadInput, match=f"{KEY} and {alias} were one tied matrix and differ now"):
        write_edited(open_checkpoint(tmp_path / "in.safetensors"), plan, tmp_path / "out", {KEY: [alias]})
    assert not os.listdir(tmp_path / "out")


def test_a_strided_view_is_written_contiguous_and_alone(tmp_path):
    state, wide = hf_state(), torch.randn(1000, 1000)
    state[KEY] = wide[::250, ::170]
    state["vision_model.encoder.layers.1.mlp.fc1.weight"] = wide[:4, :6].T
    torch.save(state, tmp_path / "in.pt")
    (tmp_path / "out").mkdir()
    write_edited(open_checkpoint(tmp_path / "in.pt"), {FC2: scale(FLIPS), FC1: scale(FLIPS)}, tmp_path / "out")
    assert (tmp_path / "in.pt").stat().st_size > 4_000_000
    assert (tmp_path / "out" / "model.safetensors").stat().st_size < 20_000
    after = load_file(tmp_path / "out" / "model.safetensors")
    for name in (KEY, "vision_model.encoder.layers.1.mlp.fc1.weight"):
        flat = state[name].contiguous().flatten()
        flat[FLIPS] *= -1
        assert torch.equal(after[name].flatten(), flat)
