"""What open_clip repairs while it loads is repaired alike, and written with the shapes that were read."""

from __future__ import annotations

import json
import shutil

import numpy as np
import open_clip
import pytest
import torch
import transformers
from families import OC_CLIP, OC_COCA, OC_SIGLIP, OC_TEXT, OC_VISION, make_open_clip
from PIL import Image
from safetensors.torch import load_file, save_file
from terminal import ALL_OF_CALIB
from tiny_files import bits

import uwm
from uwm.editing.changes import SetEntries
from uwm.editing.editors import Proposal
from uwm.editing.making import make_patch
from uwm.errors import BadInput
from uwm.models.export import check_export, export
from uwm.models.student import check_trainable, hugging_face_copy
from uwm.weights import WeightId

CAPTIONS = ["a dog", "a picture of a cat and a tree", "", "a picture of a knife " * 9]
WEIGHTS = "open_clip_model.safetensors"


def changed(folder, state=None, **parts):
    """Entries of the config, `vision_cfg` and `text_cfg` by their own keys, and of the stored tensors."""
    config = json.loads((folder / "open_clip_config.json").read_text())
    for key, value in parts.items():
        model = config["model_cfg"]
        model[key] = model[key] | value if isinstance(value, dict) else value
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    if state is not None:
        stored = load_file(folder / WEIGHTS)
        state(stored)
        save_file(stored, folder / WEIGHTS)


def with_shape_one(state):
    state["logit_scale"] = state["logit_scale"].reshape(1)


def without_bias(state):
    state.pop("logit_bias")


CUSTOM = OC_CLIP | {"custom_text": True}
LONG = OC_CLIP | {"text_cfg": OC_TEXT | {"context_length": 32}}
REPAIRS = {  # made as -> how it then differs from its config
    "a raised resolution": (OC_CLIP, {"vision_cfg": {"image_size": 96}}),
    "a resolution that is not square": (OC_CLIP, {"vision_cfg": {"image_size": [64, 96]}}),
    "a lowered resolution, pooled by attention": (OC_COCA, {"vision_cfg": {"image_size": 48}}),
    "a shortened context": (LONG, {"text_cfg": {"context_length": 24}}),
    "a lengthened context": (OC_CLIP, {"text_cfg": {"context_length": 32}}),
    "a shortened context of a custom text": (LONG | {"custom_text": True}, {"text_cfg": {"context_length": 24}}),
    "plain keys under a custom-text config": (OC_CLIP, {"custom_text": True}),
    "plain keys, custom text, both resized": (
        LONG, {"custom_text": True, "vision_cfg": {"image_size": 96}, "text_cfg": {"context_length": 24}},
    ),
    "a scale of shape [1]": (OC_CLIP, {"state": with_shape_one}),
    "a scalar scale where [1] is asked for": (OC_CLIP, {"nonscalar_logit_scale": True}),
    "a scale of shape [1] for timm": (OC_SIGLIP, {"state": with_shape_one}),
    "no bias": (OC_SIGLIP, {"state": without_bias}),
}  # fmt: skip


@pytest.fixture(scope="module", params=REPAIRS)
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("repairs") / "in"
    config, changes = REPAIRS[request.param]
    make_open_clip(config)(folder)
    changed(folder, **changes)
    return folder


def images():
    return [Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)) for _ in "ab"]


@torch.no_grad()
def test_embeddings_and_logits_are_open_clip_s(folder):
    module, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(CAPTIONS)
    pixels = torch.stack([preprocess(image) for image in images()])
    model = uwm.load(folder)
    ids, mask = model.tokenize(CAPTIONS)
    assert torch.equal(ids, tokens)
    assert torch.equal(model.preprocess(images()), pixels)
    module.eval()
    torch.testing.assert_close(model.encode_text(ids, mask), module.encode_text(tokens), atol=1e-5, rtol=0)
    torch.testing.assert_close(model.encode_image(pixels), module.encode_image(pixels), atol=1e-5, rtol=0)
    for name in ("logit_scale", "logit_bias"):
        assert torch.equal(
            model.module.state_dict().get(name, torch.ones(0)), module.state_dict().get(name, torch.ones(0))
        )


def check_written(folder, out):
    """Only the first layers of MLPs differ, every tensor has its shape, and open_clip computes what `patched` does."""
    before, after = load_file(folder / WEIGHTS), load_file(out / WEIGHTS)
    assert {key: tensor.shape for key, tensor in before.items()} == {key: t.shape for key, t in after.items()}
    differ = {key for key in before if not torch.equal(bits(before[key]), bits(after[key]))}
    assert differ
    assert all("mlp.c_fc" in key or "mlp.fc1" in key for key in differ)
    module, model = open_clip.create_model(f"local-dir:{out}").eval(), uwm.load(folder)
    with torch.no_grad(), uwm.patched(model, uwm.Patch.load(out)):
        ids, mask = model.tokenize(CAPTIONS)
        torch.testing.assert_close(model.encode_text(ids, mask), module.encode_text(ids), atol=1e-5, rtol=0)


def test_an_edit_is_written_in_the_shapes_that_were_read(folder, tmp_path):
    model = uwm.load(folder)
    names = [name for name in model.weights if name.slot == "fc1"]
    proposal = Proposal({name: SetEntries.of(np.arange(60), np.full(60, 0.3)) for name in names})
    uwm.apply(folder, make_patch(model, proposal, {"method": "test"}), output=tmp_path / "out")
    check_written(folder, tmp_path / "out")


def test_the_main_job_edits_a_folder_of_raised_resolution(tmp_path, tiny_set, run_uwm):
    folder, out = tmp_path / "in", tmp_path / "out"
    make_open_clip(OC_CLIP)(folder)
    changed(folder, vision_cfg={"image_size": 96})
    flags = (*ALL_OF_CALIB, "--text-layers", "fc1", "--vision-layers", "fc1", "--mass", 0.1, "--beside", "none")
    code, _, err = run_uwm("edit", folder, "--calib", tiny_set, "-o", out, *flags)
    assert code == 0, err
    assert "warning: vision.position_embedding: 17 positions are stored, the config asks for 37" in err
    check_written(folder, out)


def test_interpolated_positions_are_told_and_cannot_be_edited(tmp_path):
    folder = tmp_path / "in"
    make_open_clip(OC_CLIP)(folder)
    assert uwm.load(folder).notes == []
    changed(folder, vision_cfg={"image_size": 96})
    model = uwm.load(folder)
    assert model.notes == [
        "vision.position_embedding: 17 positions are stored, the config asks for 37; they are interpolated as "
        "open_clip does it, and written as they are stored"
    ]
    name = WeightId("vision", None, "position_embedding")
    change = SetEntries.of(np.arange(2), torch.zeros(2))
    with pytest.raises(BadInput, match=r"vision.position_embedding: .*\[37, 32\], interpolated .* cannot be edited"):
        make_patch(model, Proposal({name: change}), {"method": "test"})


@pytest.mark.parametrize(
    ("made", "changes", "message"),
    [
        (OC_CLIP, {"init_logit_bias": -10, "text_cfg": {"width": 64}}, r"ln_final.bias is \[32\], .* expects \[64\]"),
        (OC_CLIP | {"init_logit_bias": -10}, {"init_logit_bias": None}, "has unknown logit_bias"),
        (OC_CLIP | {"vision_cfg": OC_VISION | {"image_size": [32, 64]}}, {"vision_cfg": {"image_size": 64}},
         r"visual.positional_embedding is \[9, 32\], the architecture expects \[17, 32\]"),
        (OC_SIGLIP | {"vision_cfg": OC_SIGLIP["vision_cfg"] | {"timm_model_name": "test_vit3"}},
         {"vision_cfg": {"image_size": 192}},
         r"image_size says \[192, 192\], timm's model of that name takes \[160, 160\] only"),
        (CUSTOM, {"custom_text": False}, None),
    ],
)  # fmt: skip
def test_what_open_clip_cannot_load_is_refused(tmp_path, made, changes, message):
    """Custom-text keys under a plain config uwm reads, as it always did."""
    folder = tmp_path / "in"
    make_open_clip(made)(folder)
    changed(folder, **changes)
    with pytest.raises((RuntimeError, AttributeError, AssertionError)):
        open_clip.create_model(f"local-dir:{folder}").encode_image(torch.zeros(1, 3, 192, 192))
    if message is None:
        assert uwm.load(folder).weights
        return
    with pytest.raises(BadInput, match=message):
        uwm.load(folder)


def test_interpolated_positions_are_neither_exported_nor_trained(tmp_path):
    folder = tmp_path / "in"
    make_open_clip(OC_CLIP)(folder)
    changed(folder, vision_cfg={"image_size": 96})
    model = uwm.load(folder)
    with pytest.raises(BadInput, match="--also-export hf: vision.position_embedding is interpolated on loading"):
        check_export(model, "hf")
    with pytest.raises(BadInput, match="fine-tuning: vision.position_embedding is interpolated"):
        check_trainable(model)


@torch.no_grad()
def test_a_scale_of_shape_one_is_exported_and_trained_as_a_scalar(tmp_path, tiny_open_clip):
    folder = shutil.copytree(tiny_open_clip, tmp_path / "in")
    changed(folder, with_shape_one)
    model = uwm.load(folder)
    check_export(model, "hf")
    export(model, folder, "hf")
    module, report = transformers.CLIPModel.from_pretrained(str(folder / "hf"), output_loading_info=True)
    assert not report["missing_keys"]
    assert torch.equal(module.logit_scale, model.module.logit_scale)
    assert torch.equal(hugging_face_copy(model).module.logit_scale, model.module.logit_scale)
