"""Which family a checkpoint belongs to, and where each spells its weights."""

from __future__ import annotations

import random

import pytest
import torch
from layouts_by_hand import to_open_clip
from tiny_files import hf_state

from uwm.checkpoint import open_checkpoint
from uwm.errors import BadInput
from uwm.layouts import TABLES, find_weights, recognise
from uwm.weights import SLOTS, TOWERS, WeightId, WeightRef


def custom_text(state):
    """open_clip's names when the text tower is a module of its own."""
    outside = ("visual.", "logit_scale")
    return {key if key.startswith(outside) else f"text.{key}": tensor for key, tensor in state.items()}


SPELLINGS = {
    "hf-clip": hf_state(),
    "open_clip": to_open_clip(hf_state()),
    "open_clip-custom-text": custom_text(to_open_clip(hf_state())),
}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_table_is_whole(table):
    assert tuple(table.towers) in (TOWERS, TOWERS[::-1])
    assert tuple(table.slots) == SLOTS
    assert all(prefix.count("{block}") == 1 for prefix in table.towers.values())
    parts = sorted(value for value in table.slots.values() if value[2] > 1)
    assert [part for _, part, _ in parts] == list(range(len(parts)))


@pytest.mark.parametrize(("name", "state"), SPELLINGS.items(), ids=SPELLINGS)
def test_each_spelling_is_recognised_and_all_its_weights_found(name, state):
    keys = [*state, "vision_model.embeddings.position_ids", "attn_mask"]
    random.Random(0).shuffle(keys)
    layout = recognise(keys, "x")
    assert layout.name == name
    everything = [WeightId(tower, block, slot) for tower in TOWERS for block in range(2) for slot in sorted(SLOTS)]
    assert list(find_weights(layout, keys)) == everything


@pytest.mark.parametrize("name", ["open_clip", "open_clip-custom-text"])
def test_the_same_weight_lies_behind_every_spelling(name):
    def values(state):
        refs = find_weights(recognise(state, "x"), state)
        return {weight: state[ref.key][ref.rows(len(state[ref.key]))] for weight, ref in refs.items()}

    expected, found = values(SPELLINGS["hf-clip"]), values(SPELLINGS[name])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[weight], expected[weight]) for weight in expected)
    assert len({tensor.numpy().tobytes() for tensor in found.values()}) == len(found)


def test_real_models_of_both_libraries_agree(tiny_hf, tiny_open_clip):
    a, b = open_checkpoint(tiny_hf), open_checkpoint(tiny_open_clip)
    assert (a.layout.name, b.layout.name) == ("hf-clip", "open_clip")
    assert len(a.weights) == (2 + 3) * 6
    assert {w: a.fingerprint(w) for w in a.weights} == {w: b.fingerprint(w) for w in b.weights}


@pytest.mark.parametrize(
    "key",
    ["vision_model.head.mlp.fc2.weight", "vision_model.encoder.layers.0.mlp.fc2.bias",
     "vision_model.encoder.layers.0.mlp.fc2.weight_scale", "vision_model.encoder.layers.x.mlp.fc2.weight",
     "vision_model.encoder.layers..mlp.fc2.weight", "model.vision_model.encoder.layers.0.mlp.fc2.weight",
     "vision_modelXencoder.layers.0.mlp.fc2.weight", "vision_model.encoder.layers.0.mlp.fc2"],
)  # fmt: skip
def test_only_the_linear_weights_of_blocks_are_editable(key):
    assert find_weights(TABLES[0], [key]) == {}


def test_blocks_of_two_digits():
    key = "visual.transformer.resblocks.23.attn.in_proj_weight"
    assert find_weights(TABLES[1], [key]) == {
        WeightId("vision", 23, slot): WeightRef(key, part, 3)
        for part, slot in enumerate(("q_proj", "k_proj", "v_proj"))
    }


def test_something_else_is_refused_with_the_nearest_layout_and_what_it_misses():
    with pytest.raises(BadInput, match=r"resnet\.pt: not a CLIP-like .*2 tensors, such as 'conv1\.weight', 'fc\.bias'"):
        recognise(["fc.bias", "conv1.weight"], "resnet.pt")
    half = [key for key in SPELLINGS["open_clip"] if key != "token_embedding.weight"]
    with pytest.raises(BadInput, match=r"nearest layout open_clip misses token_embedding\.weight"):
        recognise(half, "x")


def test_no_tensors_at_all_are_refused():
    with pytest.raises(BadInput, match="0 tensors"):
        recognise([], "x")
