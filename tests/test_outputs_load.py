"""Whatever form the input has, what `edit`, `finetune`, `apply` and `revert` write loads in its library and in uwm."""

from __future__ import annotations

import contextlib
import json
import shutil

import numpy as np
import open_clip
import pytest
import torch
import transformers
from conftest import ARCH as TINY
from families import VISION, WIDTH, shaken
from layouts_by_hand import to_open_clip
from openai_archives import openai_state, save_archive
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from terminal import ALL_OF_CALIB

import uwm
from uwm import finetuning
from uwm.checkpoint import open_checkpoint
from uwm.errors import BadInput, ResourceFault

ARCH = "uwm-bare"
CONFIG = {
    "embed_dim": 24, "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16, "mlp_ratio": 2},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2, "mlp_ratio": 2},
}  # fmt: skip
CAPTIONS = ["a photo of a dog", "  Ünusual — WORDS,  42 & 'it's'  ", "a " * 60]


@pytest.fixture(scope="module")
def state():
    """A tiny random CLIP with OpenAI's vocabulary, in the Hugging Face layout."""
    text = WIDTH | {"max_position_embeddings": 24, "hidden_act": "quick_gelu"}
    config = transformers.CLIPConfig(
        text_config=text, vision_config=VISION | {"hidden_act": "quick_gelu"}, projection_dim=24
    )
    return {key: value.contiguous() for key, value in shaken(transformers.CLIPModel(config)).state_dict().items()}


FORMS = {  # how bare weights are stored, and whether in open_clip's layout
    "hf safetensors": (save_file, ".safetensors", False),
    "hf bin": (torch.save, ".bin", False),
    "hf training checkpoint": (
        lambda state, path: torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, path),
        ".ckpt",
        False,
    ),
    "hf compiled": (
        lambda state, path: save_file({f"_orig_mod.{k}": v for k, v in state.items()}, path), ".safetensors", False
    ),
    "open_clip safetensors": (lambda state, path: save_file(to_open_clip(state), path), ".safetensors", True),
    "open_clip pt": (lambda state, path: torch.save(to_open_clip(state), path), ".pt", True),
}  # fmt: skip


@pytest.fixture(params=FORMS)
def bare(request, state, tmp_path, register_architecture):
    """Bare weights of one form, and whether they are open_clip's."""
    register_architecture(ARCH, CONFIG)
    save, suffix, is_open_clip = FORMS[request.param]
    save(state, tmp_path / f"weights{suffix}")
    return tmp_path / f"weights{suffix}", is_open_clip


@torch.no_grad()
def by_library(folder, is_open_clip, images):
    """Embeddings of captions and images by the plain library, side files included."""
    if is_open_clip:
        model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
        ids = open_clip.get_tokenizer(f"local-dir:{folder}")(CAPTIONS)
        return model.eval().encode_text(ids), model.encode_image(torch.stack([preprocess(image) for image in images]))
    model, report = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] | report["unexpected_keys"]
    words = transformers.AutoTokenizer.from_pretrained(folder)(CAPTIONS, padding=True, truncation=True, return_tensors="pt")  # noqa: E501  # fmt: skip
    pixels = transformers.AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt")["pixel_values"]
    found = model.eval().get_text_features(**words), model.get_image_features(pixel_values=pixels)
    return tuple(f if torch.is_tensor(f) else f.pooler_output for f in found)


def same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-3)


@torch.no_grad()
def by_uwm(model, images):
    return model.encode_text(*model.tokenize(CAPTIONS)), model.encode_image(model.preprocess(images))


@pytest.fixture
def images(tiny_set):
    from uwm.images import load_image

    return [load_image(tiny_set / "images" / f"000{n}_safe.png") for n in range(2)]


def test_an_edit_of_bare_weights_loads_in_its_library_and_in_uwm(bare, tiny_set, images, out, run_uwm):
    weights, is_open_clip = bare
    code, _, err = run_uwm(
        "edit",
        weights,
        "--arch",
        ARCH,
        "--calib",
        tiny_set,
        "-o",
        out,
        *ALL_OF_CALIB,
        "--mass",
        0.1,
        "--beside",
        "none",
        "-q",
    )
    assert code == 0, err
    model = uwm.load(weights, arch=ARCH)
    with uwm.patched(model, uwm.Patch.load(out)):
        expected = by_uwm(model, images)
    same(by_library(out, is_open_clip, images), expected)
    same(by_uwm(uwm.load(out), images), expected)
    code, _, err = run_uwm("eval", out, "--pairs", tiny_set, "--split", "test", "-q")
    assert code == 0, err
    if not is_open_clip:  # transformers before 5 refuses a file that does not say so
        with safe_open(out / "model.safetensors", "pt") as file:
            assert file.metadata()["format"] == "pt"


def test_bare_weights_whose_tokenizer_is_transformers_take_it_along(tiny_open_clip, tiny_set, out, run_uwm, tmp_path):
    """open_clip reads the tokenizer of a local folder from that folder alone, whatever its config names."""
    weights = shutil.copy(tiny_open_clip / "open_clip_model.safetensors", tmp_path / "bare.safetensors")
    code, _, err = run_uwm("edit", weights, "--calib", tiny_set, "--arch", TINY, *ALL_OF_CALIB, "-o", out)
    assert code == 0, err
    captions = ["a picture of a dog and a skull", "a knife"]
    written, source = (open_clip.get_tokenizer(f"local-dir:{folder}")(captions) for folder in (out, tiny_open_clip))
    assert written.equal(source)
    assert run_uwm("eval", out, "--pairs", tiny_set, "--split", "test", "--no-cache")[0] == 0


@pytest.mark.parametrize("bare", ["hf safetensors", "open_clip pt"], indirect=True)
def test_a_fine_tuned_model_of_bare_weights_loads_in_its_library_and_in_uwm(bare, tiny_set, images, out, run_uwm):
    weights, is_open_clip = bare
    how = ("--method", "safe-clip", "--epochs", 1, "--targets", "q_proj", "--rank", 2, "--split", "calib")
    code, _, err = run_uwm("finetune", weights, "--arch", ARCH, "--calib", tiny_set, "-o", out, *how, "-q")
    assert code == 0, err
    same(by_library(out, is_open_clip, images), by_uwm(uwm.load(out), images))
    assert json.loads((out / "uwm.json").read_text())["results"]


def test_bare_weights_that_were_patched_from_file_to_file_open_as_the_input_does(bare, state, images, out, run_uwm):
    """`apply` needs no model library, so it writes no config: the flag that opened the input opens the output."""
    weights, _ = bare
    model = uwm.load(weights, arch=ARCH)
    name = uwm.WeightId("vision", 1, "fc2")
    patch = uwm.Patch.scaled(
        {name: torch.arange(200).numpy()}, shapes={name: (32, 64)}, base={name: model.fingerprint(name)}
    )
    patch.save(out.with_name("patch"))
    code, _, err = run_uwm("apply", weights, out.with_name("patch"), "-o", out)
    assert code == 0, err
    with pytest.raises(BadInput, match="do not say their activation"):
        uwm.load(out)
    written = uwm.load(out, arch=ARCH)
    with uwm.patched(model, patch):
        same(by_uwm(written, images), by_uwm(model, images))
    back = uwm.revert(out, uwm.Patch.load(out), output=out.with_name("back"))
    if weights.suffix == ".safetensors" and "_orig_mod." not in str(load_file(weights).keys()):
        assert (out.with_name("back") / next(iter(back.hashes))).read_bytes() == weights.read_bytes()


def test_the_written_tokenizer_is_open_clip_s(tmp_path):
    from uwm.models.openai_tokenizer import write_openai_tokenizer

    write_openai_tokenizer(tmp_path, 24)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = open_clip.SimpleTokenizer(context_length=24)(CAPTIONS)
    found = tokenizer(CAPTIONS, padding="max_length", truncation=True, max_length=24, return_tensors="pt")
    assert torch.equal(found["input_ids"] * found["attention_mask"], expected)


@pytest.mark.parametrize("metadata", [None, {"made_by": "someone"}])
def test_a_folder_for_transformers_says_its_format(tiny_hf, tmp_path, made, metadata):
    """Nothing else in the header changes, nor does any tensor; the same for `revert`."""
    source, out, back = tmp_path / "in", tmp_path / "out", tmp_path / "back"
    shutil.copytree(tiny_hf, source)
    save_file(load_file(tiny_hf / "model.safetensors"), source / "model.safetensors", metadata=metadata)
    uwm.apply(source, uwm.Patch.load(made / "patch.safetensors"), output=out)
    uwm.revert(out, uwm.Patch.load(out), output=back)
    for folder in (out, back):
        with safe_open(folder / "model.safetensors", "pt") as file:
            assert file.metadata() == (metadata or {}) | {"format": "pt"}
    before, after = load_file(source / "model.safetensors"), load_file(back / "model.safetensors")
    assert [*before] == [*after]
    assert all(torch.equal(before[key], after[key]) for key in before)


# ---------------------------------------------------------------- fine-tuning asks before it starts


@pytest.fixture
def untrained(monkeypatch):
    def train(*_, **__):
        raise AssertionError("training began")

    monkeypatch.setattr(finetuning, "train", train)


def recipe(model, tiny_set, **given):
    return finetuning.FinetuneRecipe(model=str(model), calib=str(tiny_set), split="calib", **given)


def test_fine_tuning_does_not_begin_where_its_output_could_not_be_loaded(
    tiny_hf, tiny_set, out, untrained, monkeypatch
):
    def forgets(model, folder):
        (folder / "config.json").unlink()

    monkeypatch.setattr(uwm.models.HuggingFaceModel, "write_side_files", forgets)
    with pytest.raises(BadInput, match=r"could not be loaded and measured, so it is not trained: .*no config\.json"):
        finetuning.finetune(recipe(tiny_hf, tiny_set), out)
    assert not [*out.parent.glob(".uwm-*")]


def test_fine_tuning_does_not_begin_where_the_disk_is_full(tiny_hf, tiny_set, out, untrained, monkeypatch):
    import errno
    import os

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceFault, match="No space left"):
        finetuning.finetune(recipe(tiny_hf, tiny_set), out)
    assert not [*out.parent.glob(".uwm-*")]


def test_fine_tuning_begins_where_all_is_there(tiny_hf, tiny_set, out, untrained):
    with contextlib.suppress(BadInput), pytest.raises(AssertionError, match="training began"):
        finetuning.finetune(recipe(tiny_hf, tiny_set), out)
    assert not [*out.parent.glob(".uwm-*")]


def test_an_archive_s_activation_is_said_where_the_output_cannot_say_it(tmp_path, out):
    path = save_archive(tmp_path / "clip.pt", openai_state())
    name = uwm.WeightId("vision", 1, "fc2")
    info = open_checkpoint(path).info(name)
    base = {name: open_checkpoint(path).fingerprint(name)}
    patch = uwm.Patch.scaled({name: np.arange(200)}, shapes={name: info.shape}, base=base)
    (note,) = uwm.apply(path, patch, output=out).notes
    assert "which is QuickGELU; pass --quick-gelu" in note
    with pytest.raises(BadInput, match="do not say their activation"):
        uwm.load(out)
