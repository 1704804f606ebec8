"""Tokenizers and image preprocessors that do not fit the model beside them: used as the model was made, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import families
import pytest
import torch
import transformers
from families import FAMILIES, TEXT, VISION, WIDTH, processor, saved, words_tokenizer
from PIL import Image
from terminal import refused
from tiny_gemma import gemma

import uwm
from uwm.errors import BadInput

IMAGES = [Image.new("RGB", (80, 100), (200, 30, 30)), Image.new("RGB", (100, 70), (20, 30, 220))]


def clip(folder: Path, positions: int, says: int) -> Path:
    config = transformers.CLIPConfig(
        text_config=TEXT | {"max_position_embeddings": positions}, vision_config=VISION, projection_dim=24
    )
    saved(transformers.CLIPModel(config), folder)
    words_tokenizer(folder, says)
    processor(folder)
    return folder


@torch.no_grad()
def text_of(model, texts):
    return model.encode_text(*model.tokenize(texts))


# ---------------------------------------------------------------- the length is the model's


def test_a_model_of_80_positions_reads_80_tokens_whatever_its_tokenizer_says(tmp_path):
    folder = clip(tmp_path / "clip", 80, says=24)
    texts = [" ".join(["dog", "cat", "tree"] * 30), " ".join(["dog", "cat", "tree"] * 20), "a dog"]
    model = uwm.load(folder)
    library = transformers.CLIPModel.from_pretrained(folder).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokens(texts, padding=True, truncation=True, max_length=80, return_tensors="pt")
    with torch.no_grad():
        expected = families._pooled(library.get_text_features(**inputs), "pooler_output")
    assert inputs["input_ids"].shape[1] == 80
    assert torch.allclose(text_of(model, texts), expected, atol=1e-5)
    assert model.caption_lengths(texts) == [92, 62, 4]
    assert model.notes == [
        "captions are cut at the 80 tokens that the model reads; its tokenizer's model_max_length is 24, at which "
        "transformers' pipelines cut"
    ]


def test_a_tokenizer_that_says_more_than_the_model_reads(tmp_path):
    model = uwm.load(clip(tmp_path / "clip", 24, says=128))
    assert text_of(model, [" ".join(["dog"] * 60)]).isfinite().all()
    (note,) = model.notes
    assert "24 tokens that the model reads; its tokenizer's model_max_length is 128" in note


@pytest.mark.parametrize("says", [24, None])
def test_a_tokenizer_that_says_the_same_or_nothing_is_not_mentioned(says, tmp_path):
    folder = clip(tmp_path / "clip", 24, says=24)
    if says is None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "model_max_length"}))
    model = uwm.load(folder)
    assert model.tokenize([" ".join(["dog"] * 60)])[0].shape == (1, 24)
    assert model.notes == []


def test_a_pipeline_reads_what_the_shorter_of_its_encoders_does(tmp_path):
    folder = tmp_path / "sdxl"
    FAMILIES["stable diffusion xl"].make(folder)
    shorter = transformers.CLIPTextConfig(**TEXT | {"max_position_embeddings": 20}, projection_dim=24)
    saved(transformers.CLIPTextModelWithProjection(shorter), folder / "text_encoder_2")
    model = uwm.load(folder)
    ids, mask = model.tokenize([" ".join(["dog"] * 60)])
    assert ids.shape == (1, 20)
    assert model.encode_text(ids, mask, "text_2").isfinite().all()


def test_open_clip_reads_what_its_config_says_whatever_the_tokenizer_says(tmp_path):
    import open_clip

    folder = tmp_path / "open_clip"
    FAMILIES["open_clip"].make(folder)
    words_tokenizer(folder, 9)  # of 24
    model, texts = uwm.load(folder), [" ".join(["dog", "cat"] * 20), "a dog"]
    ids = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
    assert ids.shape == (2, 24)
    assert torch.equal(model.tokenize(texts)[0], ids)
    assert model.caption_lengths(texts) == [42, 4]


# ---------------------------------------------------------------- SigLIP 2's captions are lower-cased


@pytest.fixture(scope="module")
def siglip2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "siglip2"
    text = WIDTH | {"vocab_size": 64, "max_position_embeddings": 24, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}  # noqa: E501  # fmt: skip
    saved(transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=VISION)), folder)
    processor(folder, transformers.SiglipImageProcessor)
    return folder


LOWER = "captions are lower-cased, as SigLIP models are trained; this folder's tokenizer does not do it"


@pytest.mark.parametrize("said", [{}, {"do_lower_case": True}], ids=["by its class", "and by its file"])
def test_captions_of_a_fixed_size_siglip_2_are_lower_cased(said, siglip2, tmp_path):
    folder = shutil.copytree(siglip2, tmp_path / "siglip2")
    gemma(**said).save_pretrained(folder)
    model, tokens = uwm.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    library = transformers.SiglipModel.from_pretrained(folder).eval()
    assert tokens("A DOG")["input_ids"] != tokens("a dog")["input_ids"]  # else there is nothing to do
    inputs = tokens(["a dog", "big cat"], padding="max_length", max_length=24, return_tensors="pt")
    with torch.no_grad():
        expected = families._pooled(library.get_text_features(input_ids=inputs["input_ids"]), "pooler_output")
    assert torch.allclose(text_of(model, ["A Dog", "BIG cat"]), expected, atol=1e-5)
    assert [note.startswith(LOWER) for note in model.notes] == [True]


def test_siglip_2s_own_tokenizer_lower_cases_by_itself(siglip2, tmp_path):
    """As transformers loads it for SigLIP 2 of any aspect ratio: captions come out equal, and nothing is said."""
    folder = tmp_path / "naflex"
    FAMILIES["siglip 2 naflex"].make(folder)
    gemma(transformers.Siglip2Tokenizer).save_pretrained(folder)
    model = uwm.load(folder)
    one, other = model.tokenizer()(["A Dog", "a dog"])[0]
    assert torch.equal(one, other)
    assert model.notes == []


def test_a_siglip_whose_tokenizer_keeps_capital_letters_says_so(tmp_path):
    FAMILIES["siglip"].make(tmp_path / "siglip")
    model = uwm.load(tmp_path / "siglip")
    model.tokenize(["a dog"])
    assert model.notes == [
        "captions are not lower-cased: this folder's tokenizer keeps capital letters, and SigLIP models are trained "
        "without"
    ]


# ---------------------------------------------------------------- the preprocessor fits the model


@pytest.mark.parametrize("family", ["clip", "clip vision", "siglip", "chinese-clip", "llava"])
def test_a_preprocessor_of_another_size_is_refused(family, tmp_path):
    folder = tmp_path / "model"
    FAMILIES[family].make(folder)
    kind = {"siglip": transformers.SiglipImageProcessor}.get(family, transformers.CLIPImageProcessor)
    assert uwm.load(folder).preprocess(IMAGES).shape == (2, 3, 64, 64)
    square = {"height": 48, "width": 48}
    processor(folder, kind, size=square, crop_size=square)
    with pytest.raises(BadInput, match=r"makes \[3, 48, 48\] of an image, the vision tower takes \[3, 64, 64\]"):
        uwm.load(folder).preprocess(IMAGES)


def test_a_preprocessor_that_does_not_crop_is_refused(tmp_path):
    FAMILIES["clip"].make(tmp_path / "clip")
    processor(tmp_path / "clip", size={"shortest_edge": 64}, do_center_crop=False)
    model = uwm.load(tmp_path / "clip")
    with pytest.raises(BadInput, match="the image preprocessor fails on these images"):
        model.preprocess(IMAGES)
    with pytest.raises(BadInput, match=r"makes \[3, 80, 64\] of an image"):
        model.preprocess(IMAGES[:1])


def test_patches_of_another_size_are_refused(tmp_path):
    FAMILIES["siglip 2 naflex"].make(tmp_path / "naflex")
    transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=12).save_pretrained(tmp_path / "naflex")
    with pytest.raises(BadInput, match=r"makes \[12, 192\] of an image, the vision tower takes \[768\]"):
        uwm.load(tmp_path / "naflex").preprocess(IMAGES)


def test_edit_refuses_a_preprocessor_of_another_size_before_the_pass(tiny_hf, tiny_set, tmp_path, run_uwm):
    folder = shutil.copytree(tiny_hf, tmp_path / "clip")
    square = {"height": 48, "width": 48}
    processor(folder, size=square, crop_size=square)
    result = run_uwm("edit", folder, "--calib", tiny_set, "-o", tmp_path / "out")
    refused(result, 2, str(folder), "[3, 48, 48]", "[3, 64, 64]", "copy the original's preprocessor there")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["open_clip", "open_clip siglip (timm)"])
def test_open_clip_makes_images_of_the_models_size_whatever_the_folder_says(family, tmp_path):
    import open_clip

    folder = tmp_path / "open_clip"
    FAMILIES[family].make(folder)
    path = folder / "open_clip_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"preprocess_cfg": {"size": 96}}))
    _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}", load_weights=False)
    model = uwm.load(folder)
    expected = torch.stack([transform(image) for image in IMAGES])
    assert torch.equal(model.preprocess(IMAGES), expected)
    assert model.encode_image(expected).isfinite().all()
