"""An adapter that is not merged is refused: what runs is weights and adapter together."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import peft
import pytest
import torch
import transformers
from families import FAMILIES, TEXT, shaken
from safetensors.torch import load_file, save_file
from terminal import ALL_OF_CALIB

import uwm
from uwm.checkpoint import open_checkpoint
from uwm.checkpoint.adapters import refuse_adapter_beside
from uwm.errors import BadInput

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's use of transformers
IDS, MASK = torch.tensor([[2, 4, 7, 3], [2, 8, 3, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


def adapter(module, folder):
    """A LoRA that changes what the module computes, saved as peft saves it."""
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        peft.get_peft_model(module, config).save_pretrained(folder)


@pytest.fixture
def both(tmp_path):
    """A CLIP folder with an adapter beside its weights, which transformers loads with them."""
    FAMILIES["clip"].make(tmp_path / "both")
    adapter(transformers.CLIPModel.from_pretrained(tmp_path / "both"), tmp_path / "adapter")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(tmp_path / "adapter" / name, tmp_path / "both" / name)
    return tmp_path / "both"


@torch.no_grad()
def text_features(folder, kind=transformers.AutoModel):
    found = kind.from_pretrained(folder).eval().get_text_features(input_ids=IDS, attention_mask=MASK)
    return found if torch.is_tensor(found) else found.pooler_output


def test_an_adapter_beside_the_weights_is_refused_and_the_command_merges_it(both, tmp_path, tiny_set, run_uwm):
    runs = text_features(both)
    shutil.copytree(both, tmp_path / "plain", ignore=shutil.ignore_patterns("adapter_*"))
    assert not torch.allclose(runs, text_features(tmp_path / "plain"), atol=0.1)  # the weights alone are another model
    code, _, err = run_uwm("edit", both, "--calib", tiny_set, "-o", tmp_path / "out", *ALL_OF_CALIB)
    assert code == 2
    assert "holds an adapter (adapter_config.json)" in err
    here = tmp_path / "here"
    here.mkdir()
    command = err.strip().splitlines()[-1].replace("python -c", f"{sys.executable} -c")
    done = subprocess.run(command, shell=True, check=False, cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(both / name, here / "merged" / name)
    torch.testing.assert_close(text_features(here / "merged"), runs, rtol=1e-4, atol=1e-4)
    code, _, err = run_uwm("edit", here / "merged", "--calib", tiny_set, "-o", tmp_path / "out", *ALL_OF_CALIB, "-q")
    assert code == 0, err
    assert not torch.allclose(text_features(tmp_path / "out"), runs, atol=1e-3)


@pytest.mark.parametrize("verb", ["apply", "revert", "inspect"])
def test_no_verb_takes_the_weights_alone(both, made, tmp_path, run_uwm, verb):
    more = () if verb == "inspect" else (made / "patch.safetensors", "-o", tmp_path / "out")
    code, _, err = run_uwm(verb, both, *more)
    assert code == 2
    assert "merge it first" in err


def test_an_adapter_alone_names_its_base(tmp_path):
    FAMILIES["clip"].make(tmp_path / "clip")
    adapter(transformers.CLIPModel.from_pretrained(tmp_path / "clip"), tmp_path / "adapter")
    with pytest.raises(BadInput) as error:
        uwm.load(tmp_path / "adapter")
    assert f"AutoModel.from_pretrained({str(tmp_path / 'clip')!r}), {str(tmp_path / 'adapter')!r})" in str(error.value)


def test_an_adapter_beside_a_pipeline_s_encoder_is_refused(tmp_path):
    FAMILIES["stable diffusion xl"].make(tmp_path / "in")
    place = tmp_path / "in" / "text_encoder_2"
    adapter(transformers.CLIPTextModelWithProjection.from_pretrained(place), tmp_path / "adapter")
    shutil.copy(tmp_path / "adapter" / "adapter_config.json", place)
    with pytest.raises(BadInput, match="CLIPTextModelWithProjection.from_pretrained"):  # AutoModel drops the projection
        uwm.load(tmp_path / "in")


def test_an_adapter_among_the_weights_is_refused_as_what_it_is(tmp_path):
    """A live peft model's state dict, its adapter alone, and kohya's names."""
    module = shaken(transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT)))
    wrapped = peft.get_peft_model(module, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    alone = peft.get_peft_model_state_dict(wrapped)
    kohya = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.zeros(2, 32)}
    for number, state in enumerate((wrapped.state_dict(), alone, kohya)):
        torch.save(dict(state), tmp_path / f"{number}.pt")
        save_file({k: v.contiguous().clone() for k, v in state.items()}, tmp_path / f"{number}.safetensors")
        for suffix in (".pt", ".safetensors"):
            with pytest.raises(BadInput, match="of its .* tensors are an adapter's that is not merged"):
                open_checkpoint(tmp_path / f"{number}{suffix}")


# ---------------------------------------------------------------- what else a folder runs beside its weights


def changed(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
    return folder


def test_f42_a_config_that_quantises_is_refused(tmp_path):
    FAMILIES["clip"].make(tmp_path / "in")
    changed(tmp_path / "in", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    with pytest.raises(BadInput, match="has a quantization_config, so transformers computes with quantised weights"):
        uwm.load(tmp_path / "in")


def test_code_of_its_own_is_not_run_and_said(tmp_path, tiny_set, run_uwm):
    FAMILIES["clip"].make(tmp_path / "in")
    changed(tmp_path / "in", auto_map={"AutoModel": "own.OwnModel"})
    code, _, err = run_uwm("edit", tmp_path / "in", "--calib", tiny_set, "--dry-run", *ALL_OF_CALIB)
    assert code == 0
    assert "names code of its own (auto_map), which uwm does not run" in err


def test_layers_after_the_clip_of_sentence_transformers_are_said(tmp_path):
    FAMILIES["sentence-transformers"].make(tmp_path / "in")
    assert uwm.load(tmp_path / "in").notes == []
    modules = json.loads((tmp_path / "in" / "modules.json").read_text())
    for name in ("Normalize", "Dense"):
        modules.append({"idx": len(modules), "path": f"2_{name}", "type": f"sentence_transformers.models.{name}"})
    (tmp_path / "in" / "modules.json").write_text(json.dumps(modules))
    (note,) = uwm.load(tmp_path / "in").notes
    assert "modules.json runs Dense after the CLIP" in note


def test_lora_files_beside_a_pipeline_are_copied_and_said(tmp_path):
    FAMILIES["stable diffusion"].make(tmp_path / "in")
    save_file({"unet.x.lora_A.weight": torch.zeros(1)}, tmp_path / "in" / "pytorch_lora_weights.safetensors")
    (note,) = uwm.load(tmp_path / "in").notes
    assert "pytorch_lora_weights.safetensors is copied as it is" in note


# ---------------------------------------------------------------- weights that are not read, names that are not kept


def test_weights_in_another_precision_beside_those_read_are_said(tiny_hf, tmp_path, tiny_set, made, run_uwm):
    source = tmp_path / "in"
    shutil.copytree(tiny_hf, source)
    state = load_file(source / "model.safetensors")
    torch.save(state, source / "pytorch_model.bin")
    save_file({k: v.half() for k, v in state.items()}, source / "model.safetensors", metadata={"format": "pt"})
    (source / "flax_model.msgpack").write_bytes(b"\x81")
    said = "model.safetensors (float16) was read; flax_model.msgpack, pytorch_model.bin (float32) beside it were not"
    for verb, *more in (
        ("edit", "--calib", tiny_set, "-o", tmp_path / "edited", *ALL_OF_CALIB),
        ("apply", made / "patch.safetensors", "--cast", "-o", tmp_path / "applied"),
    ):
        code, _, err = run_uwm(verb, source, *more)
        assert code == 0, err
        assert said in err
    assert not (tmp_path / "edited" / "pytorch_model.bin").exists()
    assert uwm.load(tmp_path / "edited").notes == []  # the patch and uwm.json are ours


def test_variants_in_a_pipeline_s_encoder_are_said(tmp_path):
    FAMILIES["stable diffusion"].make(tmp_path / "in")
    place = tmp_path / "in" / "text_encoder"
    half = {k: v.half() for k, v in load_file(place / "model.safetensors").items()}
    save_file(half, place / "model.fp16.safetensors", metadata={"format": "pt"})
    (note,) = uwm.load(tmp_path / "in").notes
    assert "model.safetensors (float32) was read; model.fp16.safetensors (float16) beside it was not" in note


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "module._orig_mod."])
def test_a_wrapper_s_prefix_in_safetensors_is_left_out_and_said(tiny_hf, tmp_path, wrapper, tiny_set, run_uwm):
    """transformers cannot load such a folder; it loads what uwm writes."""
    source = tmp_path / "in"
    shutil.copytree(tiny_hf, source)
    state = load_file(source / "model.safetensors")
    save_file({wrapper + key: value for key, value in state.items()}, source / "model.safetensors")
    plain, wrapped = open_checkpoint(tiny_hf), open_checkpoint(source)
    assert plain.shapes() == wrapped.shapes()
    assert all(torch.equal(plain.read(key), wrapped.read(key)) for key in state)
    assert wrapped.layout.name == "hf-clip"
    code, _, err = run_uwm("edit", source, "--calib", tiny_set, "-o", tmp_path / "out", *ALL_OF_CALIB)
    assert code == 0, err
    assert f"all tensor names begin with {wrapper}, which outputs leave out" in err
    _, report = transformers.CLIPModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] | report["unexpected_keys"]


def test_a_prefix_that_not_all_names_share_is_kept(tiny_hf, tmp_path):
    state = load_file(tiny_hf / "model.safetensors")
    save_file({f"_orig_mod.{key}": value for key, value in state.items()} | {"step": torch.ones(1)}, tmp_path / "x.safetensors")  # noqa: E501  # fmt: skip
    assert "step" in open_checkpoint(tmp_path / "x.safetensors").entries
    assert "_orig_mod.logit_scale" in open_checkpoint(tmp_path / "x.safetensors").entries


def test_a_wrapper_s_prefix_in_shards_is_refused_by_name(tmp_path):
    FAMILIES["clip text"].make(tmp_path / "in")
    state = {f"_orig_mod.{k}": v for k, v in load_file(tmp_path / "in" / "model.safetensors").items()}
    (tmp_path / "in" / "model.safetensors").unlink()
    save_file(state, tmp_path / "in" / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(state, "model-00001-of-00001.safetensors")}
    (tmp_path / "in" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match=r"all names in the shards begin with _orig_mod\., a wrapper's"):
        uwm.load(tmp_path / "in")


def test_a_name_that_a_shell_would_run_is_not_in_the_command(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "$(touch x)"}')
    with pytest.raises(BadInput) as error:
        refuse_adapter_beside(tmp_path)
    assert "touch" not in str(error.value)
    assert "from_pretrained('BASE')" in str(error.value)
