"""Every family the whole way: edit, write, load in its own library, the same embeddings as in memory, revert."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil

import pytest
import torch
from families import FAMILIES
from reference.slow_uwm import uwm_score
from safetensors.torch import load_file
from terminal import ALL_OF_CALIB

import uwm
from uwm.cache import embedding_key
from uwm.checkpoint import open_checkpoint
from uwm.images import load_image
from uwm.label_noise import LabelNoise, dependence, find_label_noise
from uwm.weights import MATRICES, SLOTS

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
        by_transformers = hasattr(model, "processor")
        processed = model.processor()(images, return_tensors="pt") if by_transformers else {}
        inputs["pixels"] = {"pixel_values": inputs["packed"]} | dict(processed)
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
        slots = {w.slot for w in checkpoint.weights if w.tower == tower.name}
        assert slots in (set(SLOTS), set(MATRICES))
        assert len([w for w in checkpoint.weights if w.tower == tower.name]) == len(blocks) * len(slots)
    used = {ref.key for ref in checkpoint.weights.values()}
    assert not [key for key in used if "head" in key or "attn_pool" in key or "decoder" in key or "probe" in key]


def test_uwm_computes_what_the_family_s_own_library_computes(case, pairs):
    family, folder = case
    model = uwm.load(folder)
    inputs = inputs_of(model, pairs)
    with torch.no_grad():
        same(embed(model, inputs), family.embed(folder, inputs))


def test_the_preprocessor_goes_to_another_process_without_the_model(case, pairs):
    model = uwm.load(case[1])
    if "vision" not in model.modalities:
        pytest.skip("it reads no images")
    images = [load_image(pair.unsafe_image) for pair in pairs.pairs]
    sent = pickle.dumps(model.preprocessor())
    assert len(sent) < 20_000  # the smallest of these models has twice as much
    assert torch.equal(pickle.loads(sent)(images), model.preprocess(images))


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
    hashed = json.loads((tmp_path / "out" / "uwm.json").read_text())["model"]["sha256"]
    assert hashed == {name: before[name] for name in hashed}
    assert len(hashed) == len(open_checkpoint(folder).files)
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
    slots = {m: {w.slot for w in model.weights if w.tower.startswith(m)} for m in model.modalities}
    flags = {f"{modality}_layers": sorted(names) for modality, names in slots.items()}
    one, three = (uwm.score(model, pairs, batch_size=size, **flags) for size in (1, 3))
    assert one.keys() == model.weights.keys() - model.unread.keys()
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


# ---------------------------------------------------------------- which tokens count


def slow_scores(model, weight, texts, counts):
    """UWM's score of one text weight by its formula, from inputs [tokens, in] caught by a plain hook.

    `counts(row, ids)` says which of a caption's positions count.
    """
    caught = []
    owner = model.module.get_submodule(model.weights[weight].key.removesuffix(".weight"))
    handle = owner.register_forward_pre_hook(lambda module, args: caught.append(args[0].detach()))
    sides = []
    for side in texts:
        ids, mask = model.tokenize(side)
        with torch.no_grad():
            model.encode_text(ids, mask)
        sides.append([caught[-1][row][counts(row, ids, caught[-1].shape[1])].tolist() for row in range(len(side))])
    handle.remove()
    return torch.tensor(uwm_score(*sides, model.parameter(weight).tolist(), "text"))


TEXTS = [
    ["a dog", "a picture of a cat and a tree", "a cup of car"],
    ["a knife", "a picture of a bomb", "a skull and dog"],
]


def until_the_end_token(row, ids, length):
    """CLIP's rule: from the start to the end token."""
    return torch.arange(length) <= ids[row].tolist().index(3)


def with_the_class_token(row, ids, length):
    """CoCa's: the same, and the class token that is appended last."""
    return until_the_end_token(row, ids, length) | (torch.arange(length) == length - 1)


def everything(row, ids, length):
    """SigLIP's: it attends to its padding, and pools the last position."""
    return torch.ones(length, dtype=torch.bool)


@pytest.mark.parametrize(
    ("name", "rule"), [("clip", until_the_end_token), ("coca", with_the_class_token), ("siglip", everything),
                       ("open_clip siglip (timm)", everything)]
)  # fmt: skip
def test_the_tokens_that_reach_the_embedding_count_and_no_others(tmp_path, name, rule):
    FAMILIES[name].make(tmp_path / "in")
    model = uwm.load(tmp_path / "in")
    weight = uwm.WeightId("text", 1, "fc2")
    safe, unsafe = (model.tokenize(side) for side in TEXTS)
    batch = uwm.PairBatch(None, None, *safe, *unsafe)
    found = uwm.score(model, [batch], text_layers=str(weight), vision_layers="none")[weight]
    torch.testing.assert_close(found, slow_scores(model, weight, TEXTS, rule), rtol=1e-4, atol=0)
    if rule is not until_the_end_token:
        clip_rule = slow_scores(model, weight, TEXTS, until_the_end_token)
        assert (found / clip_rule - 1).abs().max() > 0.05


def test_siglip_pads_to_its_whole_length_whatever_it_is_given(tmp_path):
    FAMILIES["siglip"].make(tmp_path / "in")
    model = uwm.load(tmp_path / "in")
    ids, mask = model.tokenize(["a dog"])
    assert ids.shape == (1, 24)
    short = ids[:, : int((ids[0] == 3).nonzero()) + 1]  # as CLIP would give it: to the longest caption
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(short, torch.ones_like(short)), model.encode_text(ids, mask))
        plain = model.module.get_text_features(input_ids=short)
    plain = plain if torch.is_tensor(plain) else plain.pooler_output
    assert not torch.allclose(plain, model.encode_text(ids, mask), atol=1e-2)


# ---------------------------------------------------------------- LLaVA's own releases


def test_llava_1_5_in_its_own_form(tmp_path, tiny_set, run_uwm, capsys):
    """Sharded pickles, its own names, and a config that only names the CLIP that the tower came from."""
    FAMILIES["clip"].make(tmp_path / "clip")
    tower = {
        k: v for k, v in load_file(tmp_path / "clip" / "model.safetensors").items() if k.startswith("vision_model.")
    }
    first = {f"model.vision_tower.vision_tower.{k}": v.half() for k, v in tower.items()}
    second = {"lm_head.weight": torch.randn(9, 4).half(), "model.mm_projector.0.weight": torch.randn(4, 4).half()}
    folder = tmp_path / "llava"
    folder.mkdir()
    shards = {"pytorch_model-00001-of-00002.bin": first, "pytorch_model-00002-of-00002.bin": second}
    for name, state in shards.items():
        torch.save(state, folder / name)
    index = {"metadata": {}, "weight_map": {key: name for name, state in shards.items() for key in state}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    config = {"model_type": "llava", "mm_vision_tower": str(tmp_path / "clip")}
    (folder / "config.json").write_text(json.dumps(config))
    capsys.readouterr()
    code, _, err = run_uwm(
        "edit", folder, "--calib", tiny_set, "-o", tmp_path / "out", *ALL_OF_CALIB, "--mass", 0.1, "-q"
    )
    assert code == 0, err
    patch = uwm.Patch.load(tmp_path / "out")
    assert {w.tower for w in patch.flips} == {"vision"}
    before, after = open_checkpoint(folder), open_checkpoint(tmp_path / "out")
    for key in before.entries:
        expected = before.read(key).clone()
        for weight, ref in before.weights.items():
            if ref.key == key and weight in patch.flips:
                expected.view(-1)[patch.flips[weight]] *= -1
        assert torch.equal(after.read(key), expected), key
    assert sorted(p.name for p in (tmp_path / "out").glob("*.safetensors")) == [
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "uwm_patch.safetensors",
    ]  # fmt: skip
    uwm.revert(tmp_path / "out", patch, output=tmp_path / "back")
    back = open_checkpoint(tmp_path / "back")
    assert all(torch.equal(back.read(key), before.read(key)) for key in before.entries)
