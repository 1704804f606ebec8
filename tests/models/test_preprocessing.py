"""Images for bare weights are prepared as open_clip does it for weights of that architecture, or it is asked for."""

from __future__ import annotations

import json
import shutil

import numpy as np
import open_clip
import pytest
import torch
from conftest import ARCH
from families import OC_CLIP, OC_TEXT, OC_VISION, WORDS, make_open_clip
from open_clip import pretrained
from openai_archives import openai_state, save_archive
from PIL import Image
from safetensors.torch import load_file, save_file
from terminal import ALL_OF_CALIB, done, refused

import uwm
from uwm.errors import BadInput
from uwm.models.preprocessing import preprocessing_of

HALF = (0.5, 0.5, 0.5)
SIGLIP = {"mean": HALF, "std": HALF, "interpolation": "bicubic", "resize_mode": "squash"}
OPENAI = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD, "interpolation": "bicubic", "resize_mode": "shortest"}  # noqa: E501  # fmt: skip
BILINEAR = OPENAI | {"interpolation": "bilinear"}


def said(archs, quick_gelu=False, given=None, scripted=False):
    found, notes = preprocessing_of("here.pt", archs, quick_gelu, scripted, given)
    return {key: found[key] for key in OPENAI}, notes


def test_the_registry_decides_where_its_weights_agree_and_asks_where_they_differ():
    """All of open_clip's architectures, by the config that open_clip itself merges for each tag."""
    asked = set()
    for arch in open_clip.list_models():
        usual = open_clip.get_model_config(arch).get("quick_gelu", False)
        for quick_gelu in {usual, True}:
            sources = [open_clip.get_pretrained_cfg(arch, t) for t in open_clip.list_pretrained_tags_by_model(arch)]
            alike = [s for s in sources if bool(s.get("quick_gelu", usual)) == quick_gelu] or sources
            kinds = {tuple({**OPENAI, **s}[key] for key in OPENAI) for s in alike}
            if len(kinds) > 1:
                asked.add((arch, quick_gelu))
                with pytest.raises(BadInput, match="depends on the weights"):
                    said([arch], quick_gelu)
                continue
            found, notes = said([arch], quick_gelu)
            assert tuple(found.values()) == (kinds.pop() if kinds else tuple(OPENAI.values()))
            assert bool(notes) == (not sources)
    assert asked == {("ViT-L-14", False), ("ViT-H-14", True), ("ViT-H-14-quickgelu", True)}
    assert said(["ViT-B-16-SigLIP"])[0] == SIGLIP
    assert said(["PE-Core-B-16"])[0] == SIGLIP | {"interpolation": "bilinear"}


def test_a_tag_is_asked_for_by_name_and_decides():
    with pytest.raises(BadInput) as caught:
        said(["ViT-L-14"])
    message = str(caught.value)
    assert "here.pt: how images are prepared for ViT-L-14 depends on the weights, which are not named" in message
    assert "laion2b_s32b_b82k (mean 0.5/0.5/0.5, bicubic, shortest); pass --preprocess with one of these" in message
    assert "openai" not in message  # those compute in QuickGELU
    assert said(["ViT-L-14"], given="laion2b_s32b_b82k") == (OPENAI | {"mean": HALF, "std": HALF}, [])
    assert said(["ViT-L-14"], given="LAION2B-s32b-b82k") == (OPENAI | {"mean": HALF, "std": HALF}, [])
    assert said(["ViT-L-14"], given="datacomp_xl_s13b_b90k") == (OPENAI, [])
    with pytest.raises(BadInput, match="--preprocess 'nope': neither a file nor a tag .*; ViT-L-14 has openai, "):
        said(["ViT-L-14"], given="nope")


def test_an_openai_archive_is_prepared_for_as_openai_does(tmp_path):
    file = tmp_path / "cfg.json"
    file.write_text(json.dumps({"preprocess_cfg": {"mean": HALF}}))
    assert said([], quick_gelu=True, scripted=True) == (OPENAI, [])
    with pytest.raises(BadInput, match="an OpenAI archive is prepared for as OpenAI does it; drop --preprocess"):
        said([], quick_gelu=True, scripted=True, given=str(file))
    path = save_archive(tmp_path / "model.pt", openai_state())
    assert uwm.load(path).side_configs()["open_clip_config.json"]["preprocess_cfg"]["mean"] == OPENAI["mean"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        (
            [],
            "no preprocess_cfg; expected a JSON object with some of mean, std, interpolation, resize_mode, fill_color",
        ),
        ({}, "no preprocess_cfg"),
        ({"image_mean": HALF}, "unknown key 'image_mean'"),
        ({"preprocess_cfg": {"mean": HALF, "speed": 1}}, "unknown key 'speed'"),
        ({"mean": [0.5]}, r"mean \[0.5\]; expected three numbers"),
        ({"std": [0.5, 0, 0.5]}, "std .* over 0"),
        ({"std": "0.5"}, "std '0.5'"),
        ({"interpolation": "random"}, "interpolation 'random'; expected one of bicubic, bilinear"),
        ({"resize_mode": "crop"}, "resize_mode 'crop'; expected one of shortest, longest, squash"),
        ({"fill_color": "red"}, "fill_color 'red'"),
    ],
)
def test_a_file_that_says_something_else_is_refused(tmp_path, content, message):
    file = tmp_path / "cfg.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(BadInput, match=message):
        said(["ViT-L-14"], given=str(file))


def test_a_file_is_merged_as_open_clip_merges_its_config(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"model_cfg": {}, "preprocess_cfg": {"mean": HALF, "size": 99}}))
    (tmp_path / "b.json").write_text(json.dumps({"interpolation": "bilinear"}))
    (tmp_path / "c.json").write_text(json.dumps({"preprocess_cfg": {}}))
    for name, expected in (("a", OPENAI | {"mean": HALF}), ("b", BILINEAR), ("c", OPENAI)):
        assert said(["ViT-L-14"], given=str(tmp_path / f"{name}.json"))[0] == expected


# ---------------------------------------------------------------- the whole way


@pytest.fixture
def tags(monkeypatch, tiny_open_clip):
    """What open_clip's registry says of ARCH; tests add to it."""
    tags = {"one": SIGLIP | {"quick_gelu": True}}
    monkeypatch.setitem(pretrained._PRETRAINED, ARCH, tags)
    return tags


def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 110, 3), dtype=np.uint8))


@torch.no_grad()
def test_bare_weights_embed_images_as_open_clip_does_with_a_tag_of_their_architecture(tags, tiny_open_clip, tmp_path):
    weights = tiny_open_clip / "open_clip_model.safetensors"
    tags["one"] |= {"file": str(weights)}
    module, _, transform = open_clip.create_model_and_transforms(ARCH, pretrained="one")
    pixels = transform(picture())[None]
    for model in (uwm.load(weights, arch=ARCH), uwm.load(weights, quick_gelu=True), uwm.load(f"open_clip:{ARCH}/one")):
        assert torch.equal(model.preprocess([picture()]), pixels)
        torch.testing.assert_close(model.encode_image(pixels), module.eval().encode_image(pixels), atol=1e-5, rtol=0)
        config = model.side_configs()["open_clip_config.json"]["preprocess_cfg"]
        assert {key: config[key] for key in OPENAI} == SIGLIP
        assert model.notes == []


@torch.no_grad()
def test_hugging_face_keys_are_prepared_for_alike(tags, tiny_hf, tmp_path):
    """Within what two programs make of interpolation; the processor that is written is the one that is used."""
    weights = shutil.copy(tiny_hf / "model.safetensors", tmp_path / "weights.safetensors")
    model = uwm.load(weights, arch=ARCH)
    written = model.side_configs()["preprocessor_config.json"]
    assert (written["image_mean"], written["do_center_crop"]) == (list(HALF), False)
    transform = open_clip.image_transform(64, is_train=False, mean=HALF, std=HALF, resize_mode="squash")
    torch.testing.assert_close(model.preprocess([picture()])[0], transform(picture()), atol=0.05, rtol=0)
    tags["one"]["resize_mode"] = "longest"
    with pytest.raises(BadInput, match="cannot prepare images by resize_mode 'longest'"):
        uwm.load(weights, arch=ARCH)


def test_hugging_face_keys_of_an_architecture_that_is_no_plain_clip_are_refused(
    tiny_hf, tmp_path, register_architecture
):
    """An architecture with CLIPA's captions has the tensors of a CLIP, and computes something else."""
    weights = shutil.copy(tiny_hf / "model.safetensors", tmp_path / "weights.safetensors")
    text = {"context_length": 32, "vocab_size": 1214, "width": 32, "heads": 2, "layers": 2, "mlp_ratio": 2}
    vision = {"image_size": 64, "layers": 3, "width": 32, "patch_size": 16, "head_width": 16, "mlp_ratio": 2}
    shape = {"embed_dim": 24, "vision_cfg": vision}
    register_architecture("uwm-clipa", shape | {"text_cfg": text | {"no_causal_mask": True, "pool_type": "last"}})
    with pytest.raises(BadInput, match=r"--arch uwm-clipa is no plain CLIP \(no_causal_mask, pool_type\)"):
        uwm.load(weights, arch="uwm-clipa")


def test_the_edit_writes_the_preprocessing_that_was_used(tags, tiny_open_clip, tiny_set, tmp_path, run_uwm):
    weights = tmp_path / "weights.safetensors"
    save_file(load_file(tiny_open_clip / "open_clip_model.safetensors"), weights)
    tags["two"] = OPENAI | {"quick_gelu": True}
    arguments = (
        "edit",
        weights,
        "--calib",
        tiny_set,
        "--arch",
        ARCH,
        *ALL_OF_CALIB,
        "--beside",
        "none",
        "--limit",
        4,
        "-q",
    )
    refused(
        run_uwm(*arguments, "-o", tmp_path / "no"), 2, "depends on the weights", "one (mean 0.5/0.5/0.5", "--preprocess"
    )
    cfg = tmp_path / "cfg.json"
    cfg.write_text(json.dumps(SIGLIP))
    out = tmp_path / "out"
    done(run_uwm(*arguments, "-o", out, "--preprocess", cfg))
    config = json.loads((out / "open_clip_config.json").read_text())["preprocess_cfg"]
    assert {key: config[key] for key in SIGLIP} == json.loads(json.dumps(SIGLIP))
    pixels = open_clip.create_model_and_transforms(f"local-dir:{out}")[2](picture())
    assert torch.equal(pixels, uwm.load(out).preprocess([picture()])[0])
    assert json.loads((out / "uwm.json").read_text())["settings"]["preprocess"] == "cfg.json"
    assert torch.equal(pixels, uwm.load(weights, arch=ARCH, preprocess="one").preprocess([picture()])[0])
    measure = ("eval", weights, "--baseline", tiny_open_clip, "--pairs", tiny_set, "--split", "test", "--no-cache")
    done(run_uwm(*measure, "--arch", ARCH, "--preprocess", "one", "--limit", 2))  # the flags are for the bare one


def test_folders_and_registered_weights_say_it_themselves(tags, tiny_open_clip, tiny_hf, run_uwm, tiny_set):
    for folder in (tiny_open_clip, tiny_hf):
        for flag, value in (("preprocess", "one"), ("arch", ARCH)):
            with pytest.raises(
                BadInput, match=f"--{flag} is for bare weights, and this folder says it itself; drop it"
            ):
                uwm.load(folder, **{flag: value})
    tags["one"] |= {"file": str(tiny_open_clip / "open_clip_model.safetensors")}
    with pytest.raises(BadInput, match="decides the architecture and its activation; drop --arch .* --preprocess"):
        uwm.load(f"open_clip:{ARCH}/one", preprocess="one")


def test_an_architecture_without_registered_weights_says_how_it_is_prepared_for(tmp_path, register_architecture):
    make_open_clip(OC_CLIP)(tmp_path / "in")
    tokenizer = {"hf_tokenizer_name": str(tmp_path / "in"), "tokenizer_kwargs": {"clean": "whitespace"}}
    register_architecture("uwm-lone", OC_CLIP | {"text_cfg": OC_TEXT | tokenizer, "vision_cfg": OC_VISION})
    model = uwm.load(tmp_path / "in" / "open_clip_model.safetensors", arch="uwm-lone")
    assert model.tokenize([WORDS[4]])[0].shape == (1, 24)
    assert model.notes == [
        "open_clip's registry has no weights of uwm-lone, so images are prepared as for OpenAI's CLIP (mean "
        "0.481/0.458/0.408, bicubic, shortest); --preprocess says otherwise"
    ]
