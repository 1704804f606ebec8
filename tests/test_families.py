"""Every family the whole way: edit, write, load in its own library, the same embeddings as in memory, revert."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import torch
from families import FAMILIES
from terminal import ALL_OF_CALIB

import uwm
from uwm.cache import embedding_key
from uwm.checkpoint import open_checkpoint
from uwm.images import load_image
from uwm.label_noise import LabelNoise, dependence, find_label_noise
from uwm.weights import SLOTS

EVERY_SLOT = ",".join(SLOTS)


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, tmp_path_factory):
    """A family and a folder of it, made by its own library."""
    folder = tmp_path_factory.mktemp("families") / request.param.replace(" ", "-").replace(",", "")
    FAMILIES[request.param].make(folder)
    return FAMILIES[request.param], folder


@pytest.fixture(scope="module")
def pairs(tiny_set):
    return uwm.read_calibration(tiny_set, split="test")


def inputs_of(model, pairs):
    """What the family's own library is given: token numbers, masks and pixels as uwm prepares them."""
    inputs = {}
    if "text" in model.modalities:
        inputs["ids"], inputs["mask"] = model.tokenize([pair.unsafe_text for pair in pairs.pairs])
    if "vision" in model.modalities:
        images = [load_image(pair.unsafe_image) for pair in pairs.pairs]
        inputs["packed"] = model.preprocess(images)
        processed = model._process(images) if hasattr(model, "_process") else {"pixel_values": inputs["packed"]}
        inputs["pixels"] = dict(processed)
    return inputs


@torch.no_grad()
def embed(model, inputs):
    towers = [tower.name for tower in model.layout.towers]
    found = {t: model.encode_text(inputs["ids"], inputs["mask"], t) for t in towers if t.startswith("text")}
    return found | ({"vision": model.encode_image(inputs["packed"])} if "vision" in towers else {})


def files(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5, msg=name)


def test_the_family_is_recognised_and_all_weights_of_its_blocks_found(case):
    family, folder = case
    checkpoint = open_checkpoint(folder)
    assert checkpoint.layout.name == family.layout
    for tower in checkpoint.layout.towers:
        blocks = {w.block for w in checkpoint.weights if w.tower == tower.name}
        assert blocks == set(range(6 if tower.encoder.family == "timm" else 2))
        assert len([w for w in checkpoint.weights if w.tower == tower.name]) == len(blocks) * len(SLOTS)
    used = {ref.key for ref in checkpoint.weights.values()}
    assert not [key for key in used if "head" in key or "attn_pool" in key or "decoder" in key or "probe" in key]


def test_uwm_computes_what_the_family_s_own_library_computes(case, pairs):
    family, folder = case
    model = uwm.load(folder)
    inputs = inputs_of(model, pairs)
    with torch.no_grad():
        same(embed(model, inputs), family.embed(folder, inputs))


def test_the_whole_way_and_back(case, pairs, tiny_set, tmp_path, run_uwm):
    family, folder = case
    before = files(folder)
    patterns = ["--text-layers", EVERY_SLOT, "--vision-layers", EVERY_SLOT]
    present = uwm.load(folder).modalities
    flags = [f for modality in present for f in patterns[:2] if modality == "text"]
    flags += [f for modality in present for f in patterns[2:] if modality == "vision"]
    code, _, err = run_uwm(
        "edit", folder, "--calib", tiny_set, "-o", tmp_path / "out", *ALL_OF_CALIB, "--mass", 0.1, "-q", *flags
    )
    assert code == 0, err
    model, patch = uwm.load(folder), uwm.Patch.load(tmp_path / "out")
    assert {w.tower for w in patch.flips} == {tower.name for tower in model.layout.towers}
    inputs = inputs_of(model, pairs)
    plain = embed(model, inputs)
    with uwm.patched(model, patch):
        edited = embed(model, inputs)
    for name in plain:
        assert not torch.allclose(plain[name], edited[name], atol=1e-2), name
    with torch.no_grad():
        same(family.embed(tmp_path / "out", inputs), edited)
    written = files(tmp_path / "out")
    extra = {"uwm.json", "README.md", "uwm_patch.safetensors", "report.html"}
    weights = {file.name for file in open_checkpoint(folder).files}
    assert written.keys() - extra == before.keys()
    assert {name for name in before if written[name] != before[name]} == weights
    uwm.revert(tmp_path / "out", patch, output=tmp_path / "back")
    back = files(tmp_path / "back")
    assert {name: back[name] for name in before} == before
    assert files(folder) == before


def test_every_chosen_layer_scores_alike_whatever_the_batches(case, pairs):
    _, folder = case
    model = uwm.load(folder)
    flags = {f"{modality}_layers": EVERY_SLOT for modality in model.modalities}
    one, three = (uwm.score(model, pairs, batch_size=size, **flags) for size in (1, 3))
    assert len(one) == len(model.weights)
    for weight in one:
        torch.testing.assert_close(one[weight], three[weight], rtol=2e-5, atol=0, msg=str(weight))


def test_a_model_of_one_tower_says_that_nothing_was_measured(tiny_set, tmp_path, run_uwm):
    FAMILIES["clip vision"].make(tmp_path / "in")
    code, _, err = run_uwm("edit", tmp_path / "in", "--calib", tiny_set, "-o", tmp_path / "out", *ALL_OF_CALIB)
    assert code == 0
    assert "nothing was measured" in err
    assert json.loads((tmp_path / "out" / "uwm.json").read_text())["results"] == {}
    code, _, err = run_uwm("edit", tmp_path / "in", "--calib", tiny_set, "--dry-run", "--text-layers", "fc1")
    assert code == 2
    assert "--text-layers 'fc1' matches no weight; the text tower has none" in err


def test_a_pipeline_keeps_the_parts_that_are_not_edited(tmp_path):
    FAMILIES["stable diffusion"].make(tmp_path / "in")
    shutil.copy(tmp_path / "in" / "text_encoder" / "model.safetensors", tmp_path / "in" / "text_encoder" / "model.fp16.safetensors")  # noqa: E501  # fmt: skip
    names = {str(path) for path in open_checkpoint(tmp_path / "in").side_files}
    assert "unet/diffusion_pytorch_model.safetensors" in names
    assert "text_encoder/model.fp16.safetensors" not in names  # an unedited copy of what is edited


def test_every_reader_of_embeddings_knows_the_family(case, pairs):
    """Doubted pairs of whichever towers there are; the cache's key of those with both."""
    model = uwm.load(case[1])
    noise = find_label_noise(model, pairs)
    assert noise.ids == tuple(pair.id for pair in pairs.pairs)
    third = torch.arange(len(pairs)) % 3 == 0
    stays = dependence(model, pairs, LabelNoise(noise.ids, third, third, third), mass=0.1)
    assert stays.keys() == set(model.modalities)
    if len(model.modalities) == 2:
        assert embedding_key(model, pairs, 4) == embedding_key(model, pairs, 4) != embedding_key(model, pairs, 5)
