"""Tensors whose names do not say which model is meant, or that another library stored: refused, not edited by guess."""

from __future__ import annotations

import pytest
import torch
from families import make_open_clip
from models.test_towers import RESNET
from random_patches import patch_of
from safetensors.torch import save_file
from terminal import refused
from tiny_files import hf_state

from uwm.checkpoint import open_checkpoint
from uwm.errors import BadInput

FIRST, SECOND = hf_state(), hf_state(seed=1)


def under(prefix, state):
    return {prefix + key: tensor.clone() for key, tensor in state.items()}


def mixed(prefix, chosen):
    return {prefix + key if chosen(key) else key: tensor.clone() for key, tensor in FIRST.items()}


SEVERAL = {
    "student and teacher": under("student.", FIRST) | under("teacher.", SECOND),
    "a model and its average": FIRST | under("ema.", SECOND),
    "under two names": under("model.", FIRST) | under("model_ema.", SECOND),
}
MIXED = {
    "every second": mixed("module.", lambda key: len(key) % 2),
    "one tower": mixed("_orig_mod.", lambda key: key.startswith("text_model")),
}


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("name", [*SEVERAL, *MIXED])
def test_f26_two_models_or_mixed_prefixes_in_one_file_are_refused(tmp_path, source, run_uwm, name, suffix):
    path = tmp_path / f"model.{suffix}"
    state = (SEVERAL | MIXED)[name]
    save_file(state, path, metadata={"format": "pt"}) if suffix == "safetensors" else torch.save(state, path)
    words = (
        "holds two models of one kind, .*; save that one to a file of its own" if name in SEVERAL else "do not, such"
    )
    with pytest.raises(BadInput, match=words):
        open_checkpoint(path)
    patch_of(source).save(tmp_path / "p")
    refused(run_uwm("apply", path, tmp_path / "p", "-o", tmp_path / "out"), 2, str(path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "library"), [("tf", "TensorFlow"), ("flax", "Flax")])
def test_f14_weights_of_tensorflow_and_flax_are_refused(tmp_path, kind, library):
    save_file(FIRST, tmp_path / "m.safetensors", metadata={"format": kind})
    with pytest.raises(BadInput, match=rf"stored by {library} \(format '{kind}'\), whose kernels are transposed"):
        open_checkpoint(tmp_path / "m.safetensors")


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"format": "np"}])
def test_f14_other_formats_and_none_are_read(tmp_path, metadata):
    save_file(FIRST, tmp_path / "m.safetensors", metadata=metadata)
    assert len(open_checkpoint(tmp_path / "m.safetensors").weights) == 24


def test_f28_score_says_which_tower_it_leaves_out(tmp_path, tiny_set, run_uwm):
    make_open_clip(RESNET)(tmp_path / "in")
    code, _, err = run_uwm("score", tmp_path / "in", "--calib", tiny_set, "-o", tmp_path / "s.safetensors")
    assert code == 0, err
    assert "vision tower (ModifiedResNet of open_clip): uwm has no names for its weights, so it is not edited" in err
    line = run_uwm("score", tmp_path / "in", "--calib", tiny_set, "-o", tmp_path / "t", "--vision-layers", "fc1")
    refused(line, 2, "--vision-layers 'fc1': uwm cannot edit the model's vision tower (ModifiedResNet of open_clip)")
