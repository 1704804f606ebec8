"""What `uwm edit` wrote is loaded by the plain libraries, strictly, and computes what `uwm.patched` computes."""

from __future__ import annotations

import json
import shutil

import open_clip
import pytest
import torch
from conftest import ARCH
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

import uwm
from uwm.statistics.batches import pair_batches


@pytest.fixture(scope="module")
def inputs(tiny_hf, tiny_set):
    """Pixel values and padded token numbers of some pairs."""
    calib = uwm.read_calibration(tiny_set, split="test")
    (batch,) = pair_batches(uwm.load(tiny_hf), calib, batch_size=8, towers=("text", "vision"))
    missing = 32 - batch.unsafe_input_ids.shape[1]
    ids = torch.nn.functional.pad(batch.unsafe_input_ids, (0, missing), value=int(batch.unsafe_input_ids.max()))
    mask = torch.nn.functional.pad(batch.unsafe_attention_mask, (0, missing))
    return batch.unsafe_pixel_values, ids, mask


def edit(run_uwm, *arguments):
    code, _, err = run_uwm("edit", *arguments, "--mass", 0.1, "--text-layers", "q_proj,out_proj", "-q")
    assert code == 0, err


def expected(reference, folder, inputs, **flags):
    """Embeddings under `patched`, and that the patch matters."""
    model = uwm.load(reference, **flags)
    pixels, ids, mask = inputs
    with torch.no_grad():
        before = model.encode_image(pixels), model.encode_text(ids, mask)
        with uwm.patched(model, uwm.Patch.load(folder)):
            after = model.encode_image(pixels), model.encode_text(ids, mask)
    assert not any(torch.allclose(a, b, atol=1e-2) for a, b in zip(before, after, strict=True))
    return after


@pytest.mark.parametrize("stored", ["model.safetensors", "pytorch_model.bin"])
def test_transformers_loads_the_edited_folder(run_uwm, tiny_hf, tiny_set, tmp_path, inputs, stored):
    source = tmp_path / "in"
    shutil.copytree(tiny_hf, source)
    if stored == "pytorch_model.bin":
        torch.save(load_file(source / "model.safetensors"), source / stored)
        (source / "model.safetensors").unlink()
    edit(run_uwm, source, "--calib", tiny_set, "-o", tmp_path / "out")
    module, report = CLIPModel.from_pretrained(str(tmp_path / "out"), output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    image, text = expected(tiny_hf, tmp_path / "out", inputs)
    with torch.no_grad():
        vision = module.eval().vision_model(pixel_values=inputs[0]).pooler_output
        words = module.text_model(input_ids=inputs[1], attention_mask=inputs[2]).pooler_output
        torch.testing.assert_close(module.visual_projection(vision), image)
        torch.testing.assert_close(module.text_projection(words), text)


@pytest.mark.parametrize("form", ["folder", "bare safetensors", "bare pt"])
def test_open_clip_loads_the_edited_folder(run_uwm, tiny_open_clip, tiny_set, tmp_path, inputs, form):
    weights = tiny_open_clip / "open_clip_model.safetensors"
    reference, flags = {"folder": (tiny_open_clip, {})}.get(form, (tmp_path / "x.pt", {"arch": ARCH}))
    if form == "bare safetensors":
        reference = tmp_path / "zz-weights.safetensors"
        save_file(load_file(weights), reference)
    elif form == "bare pt":
        torch.save(load_file(weights), reference)
    arguments = [v for key, value in flags.items() for v in (f"--{key}", value)]
    edit(run_uwm, reference, "--calib", tiny_set, "-o", tmp_path / "out", *arguments)
    module = open_clip.create_model(f"local-dir:{tmp_path / 'out'}").eval()  # strict in open_clip
    image, text = expected(reference, tmp_path / "out", inputs, **flags)
    with torch.no_grad():
        torch.testing.assert_close(module.encode_image(inputs[0]), image)
        torch.testing.assert_close(module.encode_text(inputs[1]), text)
    assert json.loads((tmp_path / "out" / "open_clip_config.json").read_text())["model_cfg"]["quick_gelu"] is True


def test_the_demo_model_is_a_plain_transformers_folder():
    from transformers import AutoImageProcessor, AutoTokenizer

    from uwm.shipped_files import DEMO_MODEL

    _, report = CLIPModel.from_pretrained(str(DEMO_MODEL), output_loading_info=True)
    assert not report["missing_keys"]
    assert AutoTokenizer.from_pretrained(str(DEMO_MODEL))("a knife")["input_ids"]
    assert AutoImageProcessor.from_pretrained(str(DEMO_MODEL)).size["shortest_edge"] == 64
