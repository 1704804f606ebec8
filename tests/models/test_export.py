"""`--also-export`: the other library loads the other layout strictly and computes the same."""

from __future__ import annotations

import json
import shutil

import open_clip
import pytest
import torch
from families import FAMILIES
from openai_archives import CONFIG, openai_state, save_archive
from safetensors.torch import load_file, save_file
from terminal import ALL_OF_CALIB, refused
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

import uwm
from uwm.checkpoint import file_sha256, open_checkpoint
from uwm.errors import InvalidResult
from uwm.images import load_image
from uwm.models.export import export

CAPTIONS = ["a dog", "a picture of a Dog and a knife, at 5 o'clock", "naïve café ☕ 漢字 …", "the " * 60]


def edit(run_uwm, model, tiny_set, out, to, *flags):
    code, _, err = run_uwm(
        "edit", model, "--calib", tiny_set, "-o", out, *ALL_OF_CALIB, "--mass", 0.1, "-q", "--also-export", to, *flags
    )
    assert code == 0, err
    return out


@pytest.fixture(scope="module")
def pictures(tiny_set):
    return [load_image(path) for path in sorted((tiny_set / "images").iterdir())[:4]]


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_hugging_face_to_open_clip(run_uwm, tiny_hf, tiny_set, tmp_path, pictures):
    out = edit(run_uwm, tiny_hf, tiny_set, tmp_path / "out", "open_clip")
    written = json.loads((out / "uwm.json").read_text())["output_sha256"]
    assert written == {n: file_sha256(out / n) for n in ("model.safetensors", "open_clip/open_clip_model.safetensors")}
    module, _, transform = open_clip.create_model_and_transforms(f"local-dir:{out / 'open_clip'}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out / 'open_clip'}")
    theirs = CLIPModel.from_pretrained(str(out)).eval()
    ids = AutoTokenizer.from_pretrained(str(out))(CAPTIONS[:2], padding=True, return_tensors="pt")
    pixels = AutoImageProcessor.from_pretrained(str(out))(pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        text = theirs.text_projection(theirs.text_model(**ids).pooler_output)
        close(module.eval().encode_text(tokenizer(CAPTIONS[:2])), text)
        image = theirs.visual_projection(theirs.vision_model(pixel_values=pixels).pooler_output)
        close(module.encode_image(pixels), image)
    torch.testing.assert_close(torch.stack([transform(p) for p in pictures]), pixels, rtol=0, atol=0.03)
    assert json.loads((out / "open_clip" / "open_clip_config.json").read_text())["model_cfg"]["quick_gelu"] is True


def test_open_clip_to_hugging_face_with_openai_s_tokenizer(run_uwm, tiny_set, tmp_path, pictures):
    source = save_archive(tmp_path / "tiny.pt", openai_state())
    out = edit(run_uwm, source, tiny_set, tmp_path / "out", "hf")
    module = open_clip.create_model(f"local-dir:{out}").eval()
    theirs, report = CLIPModel.from_pretrained(str(out / "hf"), output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    theirs = theirs.eval().float()
    tokens = open_clip.SimpleTokenizer(context_length=24)(CAPTIONS)
    ids = AutoTokenizer.from_pretrained(str(out / "hf"))(
        CAPTIONS, padding="max_length", truncation=True, max_length=24, return_tensors="pt"
    )
    for row in range(len(CAPTIONS)):
        length = int(ids["attention_mask"][row].sum())
        assert ids["input_ids"][row, :length].tolist() == tokens[row, :length].tolist()
        assert tokens[row, length - 1] == 49407
    pixels = AutoImageProcessor.from_pretrained(str(out / "hf"))(pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        close(theirs.text_projection(theirs.text_model(**ids).pooler_output), module.encode_text(tokens))
        close(
            theirs.visual_projection(theirs.vision_model(pixel_values=pixels).pooler_output),
            module.encode_image(pixels),
        )
    dtypes = {name: tensor.dtype for name, tensor in load_file(out / "hf" / "model.safetensors").items()}
    assert dtypes["vision_model.encoder.layers.0.mlp.fc2.weight"] == torch.float16  # as in the archive
    assert dtypes["vision_model.post_layernorm.weight"] == torch.float32


@pytest.mark.parametrize("family", ["open_clip", "open_clip custom text"])
def test_there_and_back_gives_the_same_tensors(run_uwm, tiny_set, tmp_path, family):
    FAMILIES[family].make(tmp_path / "in")
    out = edit(run_uwm, tmp_path / "in", tiny_set, tmp_path / "out", "hf")
    back = edit(run_uwm, out / "hf", tiny_set, tmp_path / "back", "open_clip", "--again")
    patch = uwm.Patch.load(back)
    first, last = open_checkpoint(out), open_checkpoint(back / "open_clip")
    for weight in first.weights:
        expected = first.matrix(weight).clone().flatten()
        expected[patch.flips.get(weight, torch.empty(0, dtype=torch.int64))] *= -1
        assert torch.equal(last.matrix(weight).flatten(), expected)


def test_an_export_is_left_behind_when_the_folder_is_reverted(run_uwm, tiny_hf, tiny_set, tmp_path):
    out = edit(run_uwm, tiny_hf, tiny_set, tmp_path / "out", "open_clip")
    uwm.revert(out, uwm.Patch.load(out), output=tmp_path / "back")
    assert not (tmp_path / "back" / "open_clip").exists()


def test_an_export_that_computes_something_else_is_not_kept(tiny_hf, tmp_path, monkeypatch):
    from uwm.models import export as module

    shutil.copytree(tiny_hf, tmp_path / "out")
    right = module._open_clip_config
    monkeypatch.setattr(module, "_open_clip_config", lambda *a: _other_activation(right(*a)))
    with pytest.raises(InvalidResult, match="the export's image embeddings are .* off the edited model's"):
        export(uwm.load(tiny_hf), tmp_path / "out", "open_clip")


def _other_activation(config):
    config["model_cfg"]["quick_gelu"] = False
    return config


@pytest.mark.parametrize(("family", "to", "words"), [
    ("clip", "hf", "the model has that layout already"),
    ("siglip", "open_clip", "for a plain CLIP with both towers; this is hf-siglip"),
    ("clip vision", "open_clip", r"for a plain CLIP with both towers; this is hf-clip (vision)"),
    ("open_clip siglip (timm)", "hf", "for a plain CLIP with both towers; this is open_clip + timm"),
    ("coca", "hf", "no plain CLIP, it has "),
])  # fmt: skip
def test_what_cannot_be_exported_is_refused(run_uwm, tiny_set, tmp_path, capsys, family, to, words):
    FAMILIES[family].make(tmp_path / "in")
    capsys.readouterr()  # what the library said while saving
    result = run_uwm(
        "edit", tmp_path / "in", "--calib", tiny_set, "-o", tmp_path / "out", *ALL_OF_CALIB, "-q", "--also-export", to
    )
    refused(result, 2, words)
    assert not (tmp_path / "out").exists()


def test_a_weight_that_a_plain_clip_lacks_is_named(tiny_hf, tmp_path):
    shutil.copytree(tiny_hf, tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    save_file(state | {"adapter.weight": torch.ones(2)}, tmp_path / "out" / "model.safetensors")
    with pytest.raises(uwm.UwmError, match=r"no plain CLIP, it has adapter\.weight"):
        export(uwm.load(tiny_hf), tmp_path / "out", "open_clip")


def test_bare_hugging_face_weights_become_a_folder_that_transformers_loads(
    run_uwm, tiny_set, tmp_path, register_architecture
):
    """A bare file has no config and no tokenizer: OpenAI's vocabulary serves, the config is made and written."""
    register_architecture("uwm-openai-tiny", CONFIG)
    whole = edit(run_uwm, save_archive(tmp_path / "tiny.pt", openai_state()), tiny_set, tmp_path / "whole", "hf")
    bare = shutil.copy(whole / "hf" / "model.safetensors", tmp_path / "bare.safetensors")
    out = tmp_path / "out"
    flags = (*ALL_OF_CALIB, "--mass", 0.1, "-q", "--quick-gelu")
    code, _, err = run_uwm("edit", bare, "--calib", tiny_set, "-o", out, *flags)
    assert code == 0, err
    theirs, report = CLIPModel.from_pretrained(str(out), output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    theirs, model = theirs.eval().float(), uwm.load(bare, quick_gelu=True)
    ids, mask = model.tokenize(CAPTIONS)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), uwm.patched(model, uwm.Patch.load(out)):
        close(
            model.encode_image(pixels), theirs.visual_projection(theirs.vision_model(pixel_values=pixels).pooler_output)
        )
        text = theirs.text_model(input_ids=ids, attention_mask=mask).pooler_output
        close(model.encode_text(ids, mask), theirs.text_projection(text))
    uwm.revert(out, uwm.Patch.load(out), output=tmp_path / "back")
    original, back = load_file(bare), load_file(tmp_path / "back" / "model.safetensors")
    assert all(torch.equal(original[key], back[key]) for key in original)
