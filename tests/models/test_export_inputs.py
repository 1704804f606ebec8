"""`--also-export`: image files and captions give the same embeddings in both libraries, or the export is refused."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import open_clip
import pytest
import torch
import transformers
from families import FAMILIES, OC_CLIP, make_open_clip, processor
from openai_archives import openai_state, save_archive
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

import uwm
from uwm.errors import BadInput, InvalidResult
from uwm.models import export as export_module
from uwm.models.conversion import convert
from uwm.models.export import check_export, export
from uwm.models.export_check import CAPTIONS, IMAGES, KEPT_APART, paint
from uwm.models.openai_tokenizer import write_openai_tokenizer

EDGE = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
WORDS = ["a picture of dog and knife", "cat", "number tree car " * 20, ""]


@pytest.fixture
def images(tmp_path):
    """Files of every kind that both libraries read alike."""
    paths = []
    for name, kind in IMAGES.items():
        if kind.comparable:
            paths.append(tmp_path / f"{name}.png")
            paint(kind, 64).save(paths[-1])
    opened = [Image.open(path) for path in paths]
    for image in opened:
        image.load()
    return opened


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A CLIP of open_clip with OpenAI's vocabulary."""
    return save_archive(tmp_path_factory.mktemp("archive") / "tiny.pt", openai_state())


def by_transformers(folder, images, texts):
    model = CLIPModel.from_pretrained(str(folder)).eval().float()
    pixels = AutoImageProcessor.from_pretrained(str(folder))(images, return_tensors="pt")["pixel_values"]
    ids = AutoTokenizer.from_pretrained(str(folder))(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        vision = model.vision_model(pixel_values=pixels.float()).pooler_output
        text = model.text_model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).pooler_output
        return model.visual_projection(vision), model.text_projection(text)


def by_open_clip(folder, images, texts):
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    with torch.no_grad():
        vision = model.eval().encode_image(torch.stack([transform(image) for image in images]))
        return vision, model.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(texts))


def clip(folder, **settings):
    FAMILIES["clip"].make(folder)
    processor(folder, **settings)
    return folder


def exported(source, to, out):
    """The export of a model that nobody edited; returns its folder and what the user is told."""
    shutil.copytree(source, out)
    model = uwm.load(source)
    check_export(model, to)
    export(model, out, to)
    return out / to, model.notes


def same(first, second):
    for a, b in zip(first, second, strict=True):
        assert torch.cosine_similarity(a, b).min() > 0.9999
        assert (a - b).norm() < 0.01 * a.norm()


@pytest.mark.parametrize("settings", [
    {"do_normalize": False},
    {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 0.9, 0.8], "image_std": [0.5, 0.6, 0.7]},
    {"do_rescale": False, "image_mean": [120.0, 110.0, 100.0], "image_std": [60.0, 65.0, 70.0]},
    {"do_normalize": False, "rescale_factor": 1 / 127.5},
    EDGE,
    {"do_center_crop": False},
    EDGE | {"resample": 2},
], ids=" ".join)  # fmt: skip
def test_preprocessing_of_every_scale_is_the_same_in_the_open_clip_folder(tmp_path, images, settings):
    source = clip(tmp_path / "in", **settings)
    folder, _ = exported(source, "open_clip", tmp_path / "out")
    same(by_transformers(source, images, WORDS), by_open_clip(folder, images, WORDS))


@pytest.mark.parametrize(("settings", "words"), [
    ({"size": {"shortest_edge": 80}}, "resizes to .*80.*; open_clip resizes to the model's input"),
    ({"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 64}}, "crops to .*56"),
    ({"size": {"height": 64, "width": 96}}, "resizes to .*96"),
    ({"size": {"shortest_edge": 64, "longest_edge": 100}}, "resizes to .*longest_edge"),
    ({"size": {"shortest_edge": 64}, "do_center_crop": False}, "do_center_crop false; open_clip always crops"),
    ({"do_resize": False}, "do_resize false; open_clip always resizes"),
    ({"resample": 1}, "resamples by 1; open_clip has bilinear and bicubic"),
    ({"do_convert_rgb": False}, "do_convert_rgb false; open_clip always converts"),
])  # fmt: skip
def test_preprocessing_that_open_clip_lacks_is_refused_before_the_work(tmp_path, settings, words):
    model = uwm.load(clip(tmp_path / "in", **settings))
    with pytest.raises(BadInput, match=words):
        check_export(model, "open_clip")


@pytest.mark.parametrize("change", [
    {"resize_mode": "squash", "mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7]},
    {"interpolation": "bilinear"},
    {"interpolation": "random", "mean": [0.0, 0.0, 0.0]},
], ids=" ".join)  # fmt: skip
def test_preprocessing_of_open_clip_is_the_same_in_the_hugging_face_folder(tmp_path, images, change):
    source = open_clip_folder(tmp_path / "in", preprocess=change)
    folder, _ = exported(source, "hf", tmp_path / "out")
    same(by_open_clip(source, images, WORDS), by_transformers(folder, images, WORDS))


def open_clip_folder(folder, preprocess=None, text=None, vision=None):
    make_open_clip(OC_CLIP)(folder)
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["preprocess_cfg"] |= preprocess or {}
    config["model_cfg"]["text_cfg"] |= text or {}
    config["model_cfg"]["vision_cfg"] |= vision or {}
    path.write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("change", "words"), [
    ({"preprocess": {"resize_mode": "longest"}}, "resize_mode is longest; .* cannot pad"),
    ({"vision": {"pool_type": "avg"}}, "vision_cfg has pool_type = 'avg'"),
    ({"text": {"no_causal_mask": True}}, "text_cfg has no_causal_mask = True"),
    ({"text": {"pool_type": "last"}}, "text_cfg has pool_type = 'last'"),
    ({"text": {"tokenizer_kwargs": {"strip_sep_token": True}}}, "tokenizer_kwargs has strip_sep_token"),
])  # fmt: skip
def test_what_transformers_lacks_is_refused_before_the_work(tmp_path, change, words):
    model = uwm.load(open_clip_folder(tmp_path / "in", **change))
    with pytest.raises(BadInput, match=words):
        check_export(model, "hf")


def test_towers_of_two_activations_are_refused_before_the_work(tmp_path):
    source = clip(tmp_path / "in")
    config = json.loads((source / "config.json").read_text())
    config["text_config"]["hidden_act"] = "gelu"
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="hidden_act is gelu and quick_gelu"):
        check_export(uwm.load(source), "open_clip")


def test_a_tokenizer_shorter_than_the_model_is_told(tmp_path):
    source = clip(tmp_path / "in")
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 16}))
    _, notes = exported(source, "open_clip", tmp_path / "out")
    assert any("captions are cut at the 24 tokens that the model reads" in note for note in notes)


@pytest.mark.parametrize("pooled", [{}, {"pool_type": "eos", "eos_id": 3}], ids=["highest token", "end token"])
def test_the_token_that_open_clip_pools_is_pooled_in_the_hugging_face_folder(tmp_path, images, pooled):
    """The end token of this vocabulary is not its last, as OpenAI's is."""
    source = open_clip_folder(tmp_path / "in", text=pooled)
    folder, _ = exported(source, "hf", tmp_path / "out")
    same(by_open_clip(source, images, WORDS), by_transformers(folder, images, WORDS))


def hugging_face_of(archive, out):
    """A Hugging Face folder with OpenAI's vocabulary and transformers' own tokenizer, which cleans nothing."""
    module = uwm.load(archive)
    out.mkdir()
    convert(module.checkpoint, "hf", out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(export_module._hugging_face_config(module)))
    write_openai_tokenizer(out, 24)
    transformers.CLIPImageProcessor(**EDGE).save_pretrained(out)
    return out


def test_entities_and_curly_quotes_become_the_same_tokens_in_the_hugging_face_folder(tmp_path, archive):
    model = uwm.load(archive)
    check_export(model, "hf")
    export_module._write_side_files(model, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path))
    theirs = open_clip.SimpleTokenizer(context_length=24)
    found = tokenizer(list(CAPTIONS.values()), padding="max_length", truncation=True)
    rows = zip(CAPTIONS, found["input_ids"], found["attention_mask"], theirs(list(CAPTIONS.values())), strict=True)
    other = {name for name, ids, mask, row in rows if ids[: sum(mask)] != row[: sum(mask)].tolist()}
    assert other == KEPT_APART
    assert any(all(name in line for name in KEPT_APART) for line in model.notes)
    assert tokenizer.model_max_length == 24
    assert tokenizer.decode(tokenizer("A Dog", add_special_tokens=False)["input_ids"]) == "a dog"


def test_captions_that_open_clip_cleans_are_named_and_all_others_are_the_same(tmp_path, archive):
    from open_clip.tokenizer import get_clean_fn

    source = hugging_face_of(archive, tmp_path / "in")
    folder, notes = exported(source, "open_clip", tmp_path / "out")
    ours, theirs = AutoTokenizer.from_pretrained(str(source)), open_clip.get_tokenizer(f"local-dir:{folder}")
    named = next(line for line in notes if "captions become other tokens" in line)
    for name, text in CAPTIONS.items():
        ids = ours(text, truncation=True)["input_ids"]
        found = theirs([text])[0, : len(ids)].tolist()
        assert (ids == found) == (name not in named), name
        cleaned = ours(get_clean_fn("whitespace")(text), truncation=True)["input_ids"]
        assert theirs([text])[0, : len(cleaned)].tolist() == cleaned, name
    assert {"HTML entities", "curly quotes"} <= {name for name in CAPTIONS if name in named}


def test_images_that_the_libraries_read_differently_are_named(tmp_path, archive):
    model = uwm.load(archive)
    check_export(model, "hf")
    line = next(line for line in model.notes if "read some images differently" in line)
    assert all(name in line for name, kind in IMAGES.items() if not kind.comparable)


def broken(where, **values):
    """A change of what a writer of the export gives."""

    def change(written):
        for key in where:
            written = written[key]
        written.update(values)

    return change


@pytest.mark.parametrize(("writer", "change", "words"), [
    ("_open_clip_config", broken(["preprocess_cfg"], mean=[0.4, 0.4, 0.4]), "image .* preprocessed differently"),
    ("_open_clip_config", broken(["preprocess_cfg"], resize_mode="squash"), "image 'landscape' is preprocessed"),
    ("_open_clip_config", broken(["preprocess_cfg"], interpolation="bilinear"), "image .* preprocessed differently"),
    ("_open_clip_config", broken(["model_cfg", "text_cfg"], hf_tokenizer_name=""), "caption 'plain' becomes other"),
    ("_open_clip_config", broken(["model_cfg", "text_cfg"], context_length=12), "caption .* becomes other tokens"),
    ("_open_clip_config", broken(["model_cfg", "text_cfg"], pool_type="last"), "text embeddings are .* off"),
    ("_open_clip_config", broken(["model_cfg", "vision_cfg"], head_width=32), "image embeddings are .* off"),
])  # fmt: skip
def test_a_broken_open_clip_folder_is_caught(tmp_path, monkeypatch, writer, change, words):
    caught(clip(tmp_path / "in", **EDGE), "open_clip", tmp_path / "out", monkeypatch, writer, change, words)


@pytest.mark.parametrize(("writer", "change", "words"), [
    ("_preprocessor", broken([], do_normalize=False), "image .* preprocessed differently"),
    ("_preprocessor", broken([], rescale_factor=1 / 127.5), "image .* preprocessed differently"),
    ("_preprocessor", broken([], size={"height": 64, "width": 64}), "image 'landscape' is preprocessed"),
    ("_hugging_face_config", broken(["text_config"], hidden_act="quick_gelu"), "text embeddings are .* off"),
    ("_hugging_face_config", broken(["vision_config"], num_attention_heads=1), "image embeddings are .* off"),
    ("_hugging_face_config", broken(["text_config"], eos_token_id=5), "text embeddings are .* off"),
])  # fmt: skip
def test_a_broken_hugging_face_folder_is_caught(tmp_path, monkeypatch, writer, change, words):
    caught(open_clip_folder(tmp_path / "in"), "hf", tmp_path / "out", monkeypatch, writer, change, words)


def caught(source, to, out, monkeypatch, writer, change, words):
    right = getattr(export_module, writer)

    def wrong(*arguments):
        written = right(*arguments)
        change(written)
        return written

    shutil.copytree(source, out)
    model = uwm.load(source)
    check_export(model, to)
    monkeypatch.setattr(export_module, writer, wrong)
    with pytest.raises(InvalidResult, match=f"{words}.*; nothing kept"):
        export(model, out, to)


def test_a_tokenizer_without_the_cleaning_is_caught_before_the_work(archive, monkeypatch):
    monkeypatch.setattr(export_module, "cleaning", lambda kind: [])
    with pytest.raises(BadInput, match="the test caption 'Greek capitals' becomes other tokens"):
        check_export(uwm.load(archive), "hf")


def test_every_intermediate_size_is_the_same_in_open_clip():
    """open_clip multiplies and cuts off: 448 · (976 / 448) is 975 there."""
    for width in (448, 704, 768, 1152):
        for inner in range(width, 5 * width, 16):
            ratio = export_module._ratio(SimpleNamespace(hidden_size=width, intermediate_size=inner))
            assert int(width * ratio) == inner
