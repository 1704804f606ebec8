"""Training checkpoints: several state dicts, `--key`, and prefixes that wrappers put before every name."""

from __future__ import annotations

import pytest
import torch
from conftest import ARCH
from safetensors.torch import load_file
from terminal import ALL_OF_CALIB, done, refused
from tiny_files import bits, hf_state

from uwm.checkpoint import open_checkpoint
from uwm.errors import BadInput

FC2 = "vision_model.encoder.layers.1.mlp.fc2.weight"


def two(names=("state_dict", "ema"), **more):
    return {names[0]: hf_state(), names[1]: hf_state(seed=1), "epoch": 3} | more


@pytest.mark.parametrize("names", [("state_dict", "ema"), ("model", "model_ema"), ("state_dict", "state_dict_ema")])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_of_several_state_dicts_the_key_chooses(tmp_path, names, zipped):
    torch.save(two(names), tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        BadInput, match=rf"x\.pt: holds several state dicts \('{names[0]}', '{names[1]}'\); choose one with --key"
    ):
        open_checkpoint(tmp_path / "x.pt")
    for seed, name in enumerate(names):
        found = open_checkpoint(tmp_path / "x.pt", name).state_dict()
        assert torch.equal(bits(found[FC2]), bits(hf_state(seed=seed)[FC2]))


def test_a_nested_state_dict_is_named_by_its_place(tmp_path):
    torch.save({"train": {"student": {"ema": hf_state()}, "teacher": hf_state(seed=1)}}, tmp_path / "x.pt")
    with pytest.raises(BadInput, match=r"\('train\.student\.ema', 'train\.teacher'\)"):
        open_checkpoint(tmp_path / "x.pt")
    found = open_checkpoint(tmp_path / "x.pt", "train.student.ema")
    assert torch.equal(found.read(FC2), hf_state()[FC2])
    with pytest.raises(
        BadInput, match=r"--key 'ema' holds no state dict; there is 'train\.student\.ema', 'train\.teacher'"
    ):
        open_checkpoint(tmp_path / "x.pt", "ema")


def test_a_key_chooses_what_is_no_model_too_and_says_so(tmp_path):
    torch.save({"model": hf_state(), "rng": {"cpu": torch.get_rng_state()}}, tmp_path / "x.pt")
    assert torch.equal(open_checkpoint(tmp_path / "x.pt").read(FC2), hf_state()[FC2])
    with pytest.raises(BadInput, match="not a CLIP-like checkpoint"):
        open_checkpoint(tmp_path / "x.pt", "rng")


def test_one_dictionary_under_two_names_is_one(tmp_path):
    state = hf_state()
    torch.save({"state_dict": state, "model": state}, tmp_path / "x.pt")
    assert torch.equal(open_checkpoint(tmp_path / "x.pt").read(FC2), state[FC2])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "model.module.", "module._orig_mod.model."])
def test_a_prefix_of_all_names_is_stripped(tmp_path, prefix):
    torch.save({"state_dict": {prefix + name: t for name, t in hf_state().items()}}, tmp_path / "x.ckpt")
    assert open_checkpoint(tmp_path / "x.ckpt").entries.keys() == hf_state().keys()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
def test_a_prefix_of_some_names_stays(tmp_path, prefix):
    state = {prefix + name: t for name, t in hf_state().items()} | {"other.weight": torch.ones(1)}
    torch.save(state, tmp_path / "x.pt")
    assert open_checkpoint(tmp_path / "x.pt").entries.keys() == state.keys()


def test_a_folder_keeps_the_prefix_that_its_library_may_want(tmp_path):
    state = {"model." + name: t for name, t in hf_state().items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert open_checkpoint(tmp_path).entries.keys() == state.keys()


def test_every_verb_takes_the_key(run_uwm, tiny_open_clip, tiny_set, tmp_path):
    model = load_file(tiny_open_clip / "open_clip_model.safetensors")
    ema = {name: tensor * 1.5 for name, tensor in model.items()}
    path, out = tmp_path / "x.pt", tmp_path / "out"
    torch.save({"state_dict": model, "ema": ema}, path)
    patch = tmp_path / "patch.safetensors"
    calib = ("--calib", tiny_set, *ALL_OF_CALIB, "--arch", ARCH)
    says = "holds several state dicts ('state_dict', 'ema'); choose one with --key"
    edit = ("edit", path, *calib, "-o", tmp_path / "edited")
    refused(run_uwm(*edit), 2, says)
    result = run_uwm(*edit, "--key", "ema", "-q")
    assert result[0] == 0, result[2]
    (tmp_path / "edited" / "uwm_patch.safetensors").rename(patch)
    for verb in (("apply", path, patch, "-o", out), ("inspect", path), ("diff", path, tmp_path / "edited")):
        refused(run_uwm(*verb), 2, says)
        refused(run_uwm(*verb, "--key", "no"), 2, "--key 'no' holds no state dict; there is 'state_dict', 'ema'")
    refused(run_uwm("apply", path, patch, "-o", out, "--key", "state_dict"), 2, "differs from the weight")
    done(run_uwm("apply", path, patch, "-o", out, "--key", "ema"))
    assert "no tensor differs" in done(run_uwm("diff", out, tmp_path / "edited"))
    assert "negated" in done(run_uwm("diff", path, out, "--key", "ema"))
    assert "layout         open_clip" in done(run_uwm("inspect", path, "--key", "ema"))
    torch.save({"best": load_file(out / "open_clip_model.safetensors"), "last": model}, tmp_path / "y.pt")
    done(run_uwm("revert", tmp_path / "y.pt", patch, "-o", tmp_path / "back", "--key", "best"))
    back = load_file(tmp_path / "back" / "open_clip_model.safetensors")
    assert all(torch.equal(bits(back[name]), bits(ema[name])) for name in ema)
    measure = ("eval", path, "--pairs", tiny_set, "--split", "test", "--arch", ARCH)
    refused(run_uwm(*measure), 2, says)
    assert "GS" in done(run_uwm(*measure, "--key", "ema"))
