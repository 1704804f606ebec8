"""Which encoders a checkpoint holds, and where each spells its weights."""

from __future__ import annotations

import random

import pytest
import torch
from layouts_by_hand import to_open_clip
from tiny_files import hf_state

from uwm.checkpoint import open_checkpoint
from uwm.errors import BadInput
from uwm.layouts import ENCODERS, find_tensors, find_weights, recognise
from uwm.weights import MATRICES, NORMS, SLOTS, TOWER_SLOTS, TOWERS, WeightId, WeightRef


def custom_text(state):
    """open_clip's names when the text tower is a module of its own."""
    outside = ("visual.", "logit_scale")
    return {key if key.startswith(outside) else f"text.{key}": tensor for key, tensor in state.items()}


def under(prefix, state):
    return {prefix + key: tensor for key, tensor in state.items()}


def only(tower, state):
    return {key: tensor for key, tensor in state.items() if key.startswith(tower)}


HF = hf_state()
SPELLINGS = {
    "hf-clip": (HF, "hf-clip"),
    "open_clip": (to_open_clip(HF), "open_clip"),
    "open_clip, custom text": (custom_text(to_open_clip(HF)), "open_clip"),
    "inside something": (under("model.clip.", HF) | {"head.weight": torch.ones(2)}, "hf-clip"),
    "under a prefix of a training program": (under("module.", to_open_clip(HF)), "open_clip"),
}
INSIDE = {  # one tower, wherever it is
    "llava 1.5": under("model.vision_tower.vision_tower.", only("vision_model.", HF)),
    "llava, transformers 4": under("vision_tower.", only("vision_model.", HF)),
    "llava, transformers 5": {f"vision_tower.{k.partition('.')[2]}": v for k, v in only("vision_model.", HF).items()},
    "stable diffusion 1, single file": under("cond_stage_model.transformer.", only("text_model.", HF)),
    "stable diffusion 2, single file": under("cond_stage_model.model.", {k: v for k, v in to_open_clip(HF).items() if not k.startswith("visual.")}),  # noqa: E501
}  # fmt: skip


@pytest.mark.parametrize("encoder", ENCODERS, ids=lambda e: f"{e.family} {e.modality}")
def test_every_row_is_whole(encoder):
    assert tuple(encoder.slots) in (SLOTS, MATRICES)
    assert encoder.blocks.count("{block}") == 1
    assert encoder.modality in TOWERS
    parts = sorted(value for value in encoder.slots.values() if value[2] > 1)
    assert [part for _, part, _ in parts] == list(range(len(parts)))
    assert tuple(slot for slot in encoder.norms if not slot.endswith(".bias")) == NORMS
    assert {slot.removesuffix(".bias") for slot in encoder.tensors} <= set(TOWER_SLOTS)
    assert {*encoder.transposed} <= {key for keys in encoder.tensors.values() for key in keys.split()}
    assert encoder.pools in ("first", "last", "end", "all")


@pytest.mark.parametrize(("state", "name"), SPELLINGS.values(), ids=SPELLINGS)
def test_each_spelling_is_recognised_and_all_its_weights_found(state, name):
    keys = [*state, "vision_model.embeddings.position_ids", "attn_mask"]
    random.Random(0).shuffle(keys)
    layout = recognise(keys, "x")
    assert layout.name == name
    everything = [WeightId(tower, block, slot) for tower in TOWERS for block in range(2) for slot in sorted(SLOTS)]
    assert list(find_weights(layout, keys)) == everything


def values(state, find=find_weights):
    refs = find(recognise(state, "x"), state)
    return {weight: ref.of(state[ref.key]) for weight, ref in refs.items()}


@pytest.mark.parametrize("state", [state for state, _ in SPELLINGS.values()], ids=SPELLINGS)
def test_the_same_weight_lies_behind_every_spelling(state):
    for find, count in ((find_weights, 2 * 2 * 6), (find_tensors, 2 * 2 * (2 * 6 + 4) + 5 + 8)):
        expected, found = values(HF, find), values(state, find)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[weight], expected[weight]) for weight in expected)
        assert len({tensor.numpy().tobytes() for tensor in found.values()}) == len(found) == count


@pytest.mark.parametrize("state", INSIDE.values(), ids=INSIDE)
def test_one_tower_is_found_inside_a_bigger_model(state):
    state = state | {
        "language_model.layers.0.mlp.fc2.weight": torch.ones(2, 2),
        "visual_projection.bias": torch.ones(2),
    }
    expected, found = values(HF), values(state)
    assert len(found) == 2 * len(SLOTS)
    assert all(torch.equal(found[weight], expected[weight]) for weight in found)
    expected, found = values(HF, find_tensors), values(state, find_tensors)
    assert all(torch.equal(found[weight], expected[weight]) for weight in found)
    tower = next(iter(found)).tower
    assert expected.keys() - found.keys() <= {w for w in expected if w.tower != tower} | {WeightId(tower, None, "proj")}


def test_a_projection_stands_beside_its_own_encoder():
    """Stable Diffusion XL: one projection in the folder of the second text encoder alone."""
    first, second = hf_state(seed=1), hf_state(seed=2)
    state = under("text_encoder/", only("text_model.", first)) | under("text_encoder_2/", only("text_", second))
    found = values(state, find_tensors)
    assert WeightId("text", None, "proj") not in found
    assert torch.equal(found[WeightId("text_2", None, "proj")], second["text_projection.weight"])


def test_two_text_encoders_in_one_file_are_text_and_text_2():
    first, second = hf_state(seed=1), to_open_clip(hf_state(seed=2))
    second = {k: v for k, v in second.items() if not k.startswith("visual.")}
    state = under("conditioner.embedders.0.transformer.", only("text_model.", first))
    state |= under("conditioner.embedders.1.model.", second)
    found, a, b = values(state), values(first), values(to_open_clip(hf_state(seed=2)))
    assert {weight.tower for weight in found} == {"text", "text_2"}
    for weight, matrix in found.items():
        expected = a[weight] if weight.tower == "text" else b[WeightId("text", weight.block, weight.slot)]
        assert torch.equal(matrix, expected)


def test_real_models_of_both_libraries_agree(tiny_hf, tiny_open_clip):
    a, b = open_checkpoint(tiny_hf), open_checkpoint(tiny_open_clip)
    assert (a.layout.name, b.layout.name) == ("hf-clip", "open_clip")
    assert len(a.weights) == (2 + 3) * 6
    assert {w: a.fingerprint(w) for w in a.weights} == {w: b.fingerprint(w) for w in b.weights}
    assert {w: a.fingerprint(w) for w in a.tensors} == {w: b.fingerprint(w) for w in b.tensors}
    assert {w: a.info(w).shape for w in a.tensors} == {w: b.info(w).shape for w in b.tensors}
    assert {ref.key for ref in a.tensors.values()} == a.entries.keys() - {"logit_scale"}
    assert {ref.key for ref in b.tensors.values()} == b.entries.keys() - {"logit_scale"}


@pytest.mark.parametrize(
    "key",
    ["vision_model.head.mlp.fc2.weight", "vision_model.encoder.layers.0.mlp.fc2.bias",
     "vision_model.encoder.layers.0.mlp.fc2.weight_scale", "vision_model.encoder.layers.x.mlp.fc2.weight",
     "vision_model.encoder.layers..mlp.fc2.weight", "model.vision_model.encoder.layers.0.mlp.fc2.weight",
     "vision_modelXencoder.layers.0.mlp.fc2.weight", "vision_model.encoder.layers.0.mlp.fc2"],
)  # fmt: skip
def test_only_the_linear_weights_of_blocks_are_editable(key):
    assert find_weights(recognise(HF, "x"), [key]) == {}


def test_blocks_of_two_digits():
    key = "visual.transformer.resblocks.23.attn.in_proj_weight"
    assert find_weights(recognise(to_open_clip(HF), "x"), [key]) == {
        WeightId("vision", 23, slot): WeightRef(key, part, 3)
        for part, slot in enumerate(("q_proj", "k_proj", "v_proj"))
    }


BERT = {"embeddings.word_embeddings.weight", "encoder.layer.0.attention.self.query.weight", "pooler.dense.weight"}
VIT = {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "head.weight"}


@pytest.mark.parametrize(
    "keys", [BERT, VIT, {"conv1.weight", "fc.bias"}, set()], ids=["BERT", "ViT", "ResNet", "empty"]
)
def test_a_model_that_is_no_clip_is_refused(keys):
    with pytest.raises(BadInput, match=rf"m\.pt: not a CLIP-like checkpoint .*\({len(keys)} tensors"):
        recognise(keys, "m.pt")


def test_f27_the_error_names_the_nearest_encoder_and_what_it_misses():
    with pytest.raises(
        BadInput, match=r"nearest, open_clip vision, misses …class_embedding\. Known families: hf-siglip, "
    ):
        recognise(["visual.conv1.weight", "fc.bias"], "resnet.pt")
