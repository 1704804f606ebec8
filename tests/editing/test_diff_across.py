"""`uwm diff` compares a CLIP in transformers' key layout with one in open_clip's."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file, save_file

import uwm
from uwm.checkpoint import open_checkpoint
from uwm.models.conversion import convert


@pytest.fixture(scope="module")
def other(made, tmp_path_factory):
    """The edited model of `made` as open_clip has it."""
    file = tmp_path_factory.mktemp("other") / "open_clip_model.safetensors"
    convert(open_checkpoint(made / "edited"), "open_clip", file)
    return file


def test_one_model_in_both_layouts_does_not_differ(tiny_hf, tiny_open_clip):
    assert uwm.diff(tiny_hf, tiny_open_clip) == {}
    assert uwm.diff(tiny_open_clip, tiny_hf) == {}


def test_an_edit_is_seen_across_layouts_as_within_one(made, other, tiny_hf):
    within = uwm.diff(tiny_hf, made / "edited")
    assert within
    assert uwm.diff(tiny_hf, other) == within
    assert uwm.diff(other, made / "edited") == {}


def test_under_open_clips_names_and_whole_fused_tensors(tiny_open_clip, made):
    found = uwm.diff(tiny_open_clip, made / "edited")
    assert "visual.transformer.resblocks.0.mlp.c_proj.weight" in found
    assert sum(one["differ"] for one in found.values()) == sum(uwm.Patch.load(made / "edited").counts().values())


def test_other_dtypes_are_compared_by_value(tiny_hf, other, made, tmp_path):
    half = {name: tensor.half() for name, tensor in load_file(other).items()}
    save_file(half, tmp_path / "half.safetensors")
    rounded = uwm.diff(made / "edited", tmp_path / "half.safetensors")
    assert all(one["negated"] == 0 for one in rounded.values())
    name = "vision_model.encoder.layers.0.mlp.fc2.weight"
    stored = load_file(made / "edited" / "model.safetensors")[name]
    assert rounded[name]["differ"] == int((stored != stored.half().float()).sum()) > 0


def test_another_shape_is_told(tiny_hf, other, tmp_path):
    tensors = load_file(other)
    tensors["positional_embedding"] = tensors["positional_embedding"][:-1].clone()
    save_file(tensors, tmp_path / "short.safetensors")
    with pytest.raises(uwm.errors.BadInput, match="position_embedding"):
        uwm.diff(tiny_hf, tmp_path / "short.safetensors")
