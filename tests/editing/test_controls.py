"""The controls of a comparison: as many entries as a patch, drawn at random or of largest magnitude."""

from __future__ import annotations

import pytest
import torch
from conftest import ARCH
from random_patches import EVERY_SLOT, FC2, patch_of
from safetensors.torch import load_file, save_file

import uwm
from uwm.editing.entries.controls import magnitude_control, random_control
from uwm.errors import BadInput

FC2_KEY = "vision_model.encoder.layers.1.mlp.fc2.weight"


@pytest.fixture(scope="module")
def model(tiny_hf):
    return uwm.load(tiny_hf)


def test_the_random_control_is_as_large_and_not_the_same(source):
    patch = patch_of(source, EVERY_SLOT)
    control = random_control(patch)
    assert control.counts() == patch.counts()
    assert (control.base, control.shapes, control.alpha) == (patch.base, patch.shapes, patch.alpha)
    for weight, indices in control.flips.items():
        assert indices.tolist() == sorted(set(indices.tolist()))
        assert indices.min() >= 0
        assert indices.max() < patch.shapes[weight][0] * patch.shapes[weight][1]
    assert any(not torch.equal(control.flips[weight], patch.flips[weight]) for weight in patch.flips)


def test_the_random_control_depends_on_its_seed_alone(source):
    patch = patch_of(source, EVERY_SLOT)
    torch.manual_seed(1)
    first = random_control(patch, seed=3)
    state = torch.random.get_rng_state()
    second, other = random_control(patch, seed=3), random_control(patch, seed=4)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(first.flips[weight], second.flips[weight]) for weight in patch.flips)
    assert any(not torch.equal(first.flips[weight], other.flips[weight]) for weight in patch.flips)


@pytest.mark.parametrize("alpha", [-1.0, 0.0])
def test_the_magnitude_control_takes_the_largest_entries(tiny_hf, model, alpha):
    patch = patch_of(tiny_hf, EVERY_SLOT, mass=0.1, alpha=alpha)
    control = magnitude_control(patch, model)
    assert control.counts() == patch.counts()
    assert (control.base, control.shapes, control.alpha) == (patch.base, patch.shapes, alpha)
    assert (control.recipe, control.missed) == ({"method": "magnitude"}, {})
    for weight, indices in control.flips.items():
        magnitude = model.stored(weight).flatten().abs()
        rest = torch.ones(len(magnitude), dtype=torch.bool)
        rest[indices] = False
        assert magnitude[indices].min() > magnitude[rest].max()
        assert indices.tolist() == sorted(set(indices.tolist()))
        assert not torch.equal(indices, patch.flips[weight])


def test_of_equal_magnitudes_the_first_entries_are_taken(tiny_hf, tmp_path):
    state = load_file(tiny_hf / "model.safetensors")
    values = torch.full((32, 64), 0.5)
    values[1::2] = -0.5
    values[7, 3], values[20, 60] = 0.75, -0.75
    save_file(state | {FC2_KEY: values}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((tiny_hf / name).read_bytes())
    patch = patch_of(tmp_path, [FC2], mass=0.02)
    count = len(patch.flips[FC2])
    found = magnitude_control(patch, uwm.load(tmp_path)).flips[FC2]
    assert found.tolist() == [*range(count - 2), 7 * 64 + 3, 20 * 64 + 60]


def test_the_magnitude_control_is_of_the_stored_weights_whatever_the_model_computes_in(tiny_open_clip, model):
    half = uwm.load(tiny_open_clip / "open_clip_model.safetensors", arch=ARCH, dtype="bfloat16")
    patch = patch_of(tiny_open_clip, EVERY_SLOT, mass=0.1)
    exact, found = magnitude_control(patch, model), magnitude_control(patch, half)
    assert all(torch.equal(found.flips[weight], exact.flips[weight]) for weight in patch.flips)


def test_the_magnitude_control_wants_the_patch_s_own_model_unedited(source, tiny_hf, model):
    with pytest.raises(BadInput, match="was made for vision"):
        magnitude_control(patch_of(source), model)
    patch = patch_of(tiny_hf)
    with uwm.patched(model, patch), pytest.raises(BadInput, match="already patched"):
        magnitude_control(patch, model)


def test_controls_can_be_applied_like_a_patch(tiny_hf, model):
    patch = patch_of(tiny_hf, EVERY_SLOT, mass=0.1)
    for control in (random_control(patch), magnitude_control(patch, model)):
        before = {weight: model.parameter(weight).clone() for weight in patch.flips}
        with uwm.patched(model, control):
            changed = {weight: int((model.parameter(weight) != before[weight]).sum()) for weight in patch.flips}
        assert changed == patch.counts()
        assert all(torch.equal(model.parameter(weight), before[weight]) for weight in patch.flips)
