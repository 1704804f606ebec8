"""Models whose sides disagree: refused with file, key, expected and found, before memory is taken."""

from __future__ import annotations

import json
import resource
import shutil
import struct
import zlib

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from terminal import refused

import uwm
from uwm.errors import BadInput, Refused
from uwm.images import bad_images, load_image

GIGABYTE = 1 << 30


def at(place, value):
    """A change of one key of a JSON file; `...` takes it away."""

    def change(content):
        *path, last = place.split(".")
        part = content
        for name in path:
            part = part[name]
        part[last] = value
        if value is ...:
            del part[last]
        return content

    return change


def rewritten(path, change):
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def used(folder):
    """Load a model, and embed one caption and one image."""
    model = uwm.load(folder)
    with torch.no_grad():
        model.encode_text(*model.tokenize(["a dog", "a cat and a knife"]))
        model.encode_image(model.preprocess([Image.new("RGB", (70, 90))]))


@pytest.fixture
def small_memory():
    """At most two gigabytes more than are mapped now."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as stream:
        mapped = int(stream.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 2 * GIGABYTE, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


# ---------------------------------------------------------------- config.json

CONFIGS = {
    "a list": (lambda c: [], r"config\.json: damaged: expected an object, found \[\]"),
    "null": (lambda c: None, "expected an object, found None"),
    "a tower that is a list": (at("text_config", [3]), r"text_config: expected an object, found \[3\]"),
    "a negative size": (at("text_config.hidden_size", -32), r"text_config\.hidden_size: expected a whole number"),
    "a size of 10³⁰": (at("vision_config.intermediate_size", 10**30), r"vision_config\.intermediate_size: expected"),
    "a size of gigabytes": (
        at("text_config.vocab_size", 2**24),
        r"token_embedding.*the architecture expects \[16777216",
    ),
    "a size in the older key": (at("text_config_dict", {"hidden_size": 10**12}), r"text_config_dict\.hidden_size"),
    "millions of layers": (at("vision_config.num_hidden_layers", 10**7), "num_hidden_layers: expected at most"),
    "a fraction": (
        at("vision_config.patch_size", 0.5),
        r"patch_size: expected a whole number from 1 to \d+, found 0\.5",
    ),
    "heads that do not divide": (
        at("text_config.num_attention_heads", 5),
        r"text_config\.num_attention_heads: expected a divisor of hidden_size 32, found 5",
    ),
    "patches beyond the image": (at("vision_config.patch_size", 65), r"patch_size: expected at most image_size 64"),
    "an unknown activation": (at("text_config.hidden_act", "none"), "no model can be made of it"),
    "NaN": (
        at("text_config.layer_norm_eps", float("nan")),
        r"layer_norm_eps: expected a number from 0 to 1, found nan",
    ),
    "any attribute of torch": (
        at("torch_dtype", "manual_seed"),
        "torch_dtype: expected float32 or float16 or bfloat16",
    ),
    "code of the Hub for attention": (
        at("_attn_implementation", "a/b"),
        "_attn_implementation: expected eager or sdpa",
    ),
    "no end token": (at("text_config.eos_token_id", None), "eos_token_id: expected a token's number"),
    "other heads": (at("projection_dim", 25), r"projection\.weight is \[24, 32\], the architecture expects \[25, 32\]"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_f30_a_config_that_no_model_of_these_weights_has_is_refused(tiny_hf, tmp_path, small_memory, name):
    change, words = CONFIGS[name]
    folder = shutil.copytree(tiny_hf, tmp_path / "model")
    rewritten(folder / "config.json", change)
    with pytest.raises(BadInput, match=rf"{folder}.*{words}"):
        used(folder)


def test_a_config_nested_a_thousandfold_is_refused(tiny_hf, tmp_path):
    folder = shutil.copytree(tiny_hf, tmp_path / "model")
    (folder / "config.json").write_text('{"a": ' * 100_000)
    with pytest.raises(BadInput, match=r"config\.json: not valid JSON"):
        uwm.load(folder)


def test_a_wrong_config_is_one_line(tiny_hf, tiny_set, tmp_path, run_uwm):
    folder = shutil.copytree(tiny_hf, tmp_path / "model")
    rewritten(folder / "config.json", at("text_config.num_attention_heads", 5))
    refused(run_uwm("score", folder, "--calib", tiny_set, "-o", tmp_path / "s"), 2, "a divisor of hidden_size 32")


# ---------------------------------------------------------------- the preprocessor and the tokenizer

PREPROCESSORS = {
    "a list": (lambda c: [], r"expected an object, found \[\]"),
    "a size of gigabytes": (
        at("size", {"shortest_edge": 10**6}),
        r"size\.shortest_edge: expected a whole number from 1 to 8192, found 1000000",
    ),
    "a negative size": (at("crop_size", {"height": -3, "width": 64}), r"crop_size\.height: expected"),
    "another model's size": (at("crop_size", {"height": 32, "width": 32}), r"makes \[3, 32, 32\].*takes \[3, 64, 64\]"),
    "a mean that is a text": (at("image_mean", ["a", "b", "c"]), r"image_mean\[0\]: expected a number"),
    "a deviation of nothing": (at("image_std", [0, 0, 0]), r"image_std\[0\]: expected a number from 1e-06"),
    "NaN": (at("rescale_factor", float("nan")), "rescale_factor: expected a number"),
    "two means": (at("image_mean", [0.5, 0.5]), "the image preprocessor fails on these images"),
}


@pytest.mark.parametrize("name", PREPROCESSORS)
def test_f65_a_preprocessor_that_is_not_this_models_is_refused(tiny_hf, tmp_path, small_memory, name):
    change, words = PREPROCESSORS[name]
    folder = shutil.copytree(tiny_hf, tmp_path / "model")
    rewritten(folder / "preprocessor_config.json", change)
    with pytest.raises(BadInput, match=rf"{folder}.*{words}"):
        used(folder)


def test_sizes_of_two_numbers_are_a_preprocessors_own_form(tiny_hf, tmp_path):
    folder = shutil.copytree(tiny_hf, tmp_path / "model")
    rewritten(folder / "preprocessor_config.json", at("crop_size", [64, 64]))
    used(folder)


def test_f30_a_tokenizer_larger_than_the_vocabulary_is_refused(tiny_hf, tmp_path):
    folder = shutil.copytree(tiny_hf, tmp_path / "model")
    held = load_file(folder / "model.safetensors")
    name = "text_model.embeddings.token_embedding.weight"
    held[name] = held[name][:100].contiguous()
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    rewritten(folder / "config.json", at("text_config.vocab_size", 100))
    with pytest.raises(BadInput, match=r"the tokenizer makes token \d+, the text tower has 100"):
        uwm.load(folder).tokenize(["a dog"])


# ---------------------------------------------------------------- open_clip_config.json

TEXT, VISION = "model_cfg.text_cfg", "model_cfg.vision_cfg"
OPEN_CLIP = {
    "a list": (lambda c: [], r"expected an object, found \[\]"),
    "no model": (at("model_cfg", ...), "model_cfg: expected a value"),
    "no text tower": (at(TEXT, None), r"text_cfg: expected an object, found None"),
    "a vision tower that is a text": (at(VISION, "ViT"), r"vision_cfg: expected an object, found 'ViT'"),
    "no width of embeddings": (at("model_cfg.embed_dim", ...), r"embed_dim: expected a value"),
    "a width of embeddings that is a text": (at("model_cfg.embed_dim", "24"), r"embed_dim: expected a whole number"),
    "heads that do not divide": (at(f"{TEXT}.heads", 5), r"heads: expected a divisor of width 32, found 5"),
    "heads of a width that does not divide": (at(f"{VISION}.head_width", 5), "head_width: expected a divisor"),
    "no heads": (at(f"{TEXT}.heads", 0), r"heads: expected a whole number from 1"),
    "patches beyond the image": (
        at(f"{VISION}.patch_size", 65),
        "patch_size: expected at most image_size 64, found 65",
    ),
    "millions of layers": (at(f"{TEXT}.layers", 10**7), r"layers: expected a whole number from 0 to 4096"),
    "a width of gigabytes": (at(f"{TEXT}.width", 1 << 20), "asks for a model of some .* parameters, the weights have"),
    "a vocabulary of gigabytes": (at(f"{TEXT}.vocab_size", 10**7), "asks for a model of some"),
    "a decoder of gigabytes": (
        at("model_cfg.multimodal_cfg", {"width": 1 << 16, "layers": 40}),
        "asks for a model of some",
    ),
    "a decoder that is a text": (at("model_cfg.multimodal_cfg", {"width": "x"}), "width: expected a whole number"),
    "a ResNet of gigabytes": (
        lambda c: at(f"{VISION}.layers", [4000] * 4)(at(f"{VISION}.width", 1 << 16)(c)),
        "asks for a model of some",
    ),
    "images of gigabytes": (at(f"{VISION}.image_size", 10**6), r"image_size: expected a whole number from 1 to 8192"),
    "an end beyond the vocabulary": (at(f"{TEXT}.eos_id", 5000), "eos_id: expected less than vocab_size 1214"),
    "a class token that is not computed": (at(f"{TEXT}.embed_cls", True), "embed_cls: expected false"),
    "a ratio of nothing": (at(f"{VISION}.mlp_ratio", 0), "mlp_ratio: expected a number from 0.01 to 64"),
    "a mean of two": (at("preprocess_cfg.mean", [0.5, 0.5]), r"preprocess_cfg\.mean: expected a list of 3"),
    "an unknown interpolation": (
        at("preprocess_cfg.interpolation", "x"),
        "interpolation: expected bicubic or bilinear or random",
    ),
    "an unknown key": (at(f"{TEXT}.depth", 3), "open_clip cannot build it"),
    "other arguments of the tokenizer": (
        at(f"{TEXT}.tokenizer_kwargs", {"gguf_file": "x"}),
        r"tokenizer_kwargs\.gguf_file: expected no such key",
    ),
}


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_f30_an_open_clip_config_that_no_model_of_these_weights_has_is_refused(
    tiny_open_clip, tmp_path, small_memory, name
):
    change, words = OPEN_CLIP[name]
    folder = shutil.copytree(tiny_open_clip, tmp_path / "model")
    rewritten(folder / "open_clip_config.json", change)
    with pytest.raises(BadInput, match=rf"{folder}.*{words}"):
        used(folder)


def test_a_tokenizers_own_code_is_never_run(tiny_open_clip, tmp_path, run_uwm, tiny_set):
    """open_clip passes what a config says of the tokenizer on to transformers, which then imports a file beside it."""
    folder = shutil.copytree(tiny_open_clip, tmp_path / "model")
    canary = tmp_path / "canary"
    (folder / "code.py").write_text(f"open({str(canary)!r}, 'w')\nclass Own: pass\n")
    rewritten(folder / "tokenizer_config.json", at("auto_map", {"AutoTokenizer": ["code.Own", None]}))
    config = at(f"{TEXT}.tokenizer_kwargs", {"trust_remote_code": True})
    rewritten(folder / "open_clip_config.json", lambda c: at(f"{TEXT}.hf_tokenizer_name", str(folder))(config(c)))
    with pytest.raises(Refused, match="asks to run code of its tokenizer"):
        used(folder)
    refused(run_uwm("score", folder, "--calib", tiny_set, "-o", tmp_path / "s"), 3, "trust_remote_code")
    assert not canary.exists()


# ---------------------------------------------------------------- NaN in what is not selected


@pytest.mark.parametrize(
    "key", ["text_model.final_layer_norm.weight", "visual_projection.weight", "vision_model.pre_layrnorm.bias"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_f40_nan_in_what_is_not_selected_is_seen_by_score(tiny_hf, tiny_set, tmp_path, run_uwm, key, value):
    folder = shutil.copytree(tiny_hf, tmp_path / "model")
    held = load_file(folder / "model.safetensors")
    held[key].view(-1)[3] = value
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    line = refused(
        run_uwm("score", folder, "--calib", tiny_set, "-o", tmp_path / "s"), 2, key, "holds 1 NaN or infinite"
    )
    assert "first at (" in line


# ---------------------------------------------------------------- images


def png(width, height):
    """A PNG of one colour, a few hundred bytes whatever its size."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = zlib.compress((b"\0" + b"\0" * ((width + 7) // 8)) * height, 9)
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(60000, 1), (1, 60000), (2001, 10)])
def test_f65_a_strip_is_refused_with_its_sizes(tmp_path, size):
    """Resized by its shorter side to 224, 60000 × 1 asks for 9 GB."""
    (tmp_path / "p.png").write_bytes(png(*size))
    words = rf"p\.png: {size[0]} × {size[1]} pixels, one side more than 200 times the other; crop it"
    with pytest.raises(BadInput, match=words):
        load_image(tmp_path / "p.png")
    assert len(bad_images([tmp_path / "p.png"])) == 1


def test_a_long_image_is_read(tmp_path):
    (tmp_path / "p.png").write_bytes(png(2000, 10))
    assert load_image(tmp_path / "p.png").size == (2000, 10)
