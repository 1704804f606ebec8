"""The last MLP at the pooled token alone: the same embeddings bit for bit, or the long way."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES
from torch import nn
from tuning.edits_of_all_kinds import changes_of

import uwm
from uwm.editing.live import changed
from uwm.statistics.batches import embed_inputs
from uwm.statistics.last_mlp import FEW, embed_pooled
from uwm.weights import WeightId

CAPTIONS = [f"a picture of {' and '.join(['dog', 'cat', 'tree', 'car'][: 1 + n % 4])}" for n in range(FEW + 3)]
COUNT = len(CAPTIONS)
TEXT, VISION = WeightId("text", 1, "fc2"), WeightId("vision", 2, "fc2")


@pytest.fixture
def model(tiny_hf):
    return uwm.load(tiny_hf)


def inputs_of(model, tower, count=COUNT):
    if tower == "text":
        return model.tokenize(CAPTIONS[:count])
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(count)), None


def tokens_of(model, last):
    """How many tokens of each caption or image every call of a layer is given."""
    seen = []
    model.owner(last).register_forward_hook(lambda module, args, output: seen.append(args[0].shape[1]))
    return seen


@pytest.mark.parametrize("last", [TEXT, VISION], ids=str)
def test_the_short_way_gives_the_same_bits_edited_or_not(model, last):
    inputs, changes = inputs_of(model, last.tower), changes_of(model, [f"{last.tower}.0.fc1", str(last)])
    expected = [embed_inputs(model, *inputs)]
    with changed(model, changes):
        expected.append(embed_inputs(model, *inputs))
    seen = tokens_of(model, last)
    for number in (1, 2):
        assert embed_pooled(model, last.tower, *inputs).equal(expected[0]), number
        with changed(model, changes):
            assert embed_pooled(model, last.tower, *inputs).equal(expected[1]), number
    assert model.pooled_alone == {(last.tower, COUNT): True}
    whole = seen[0]
    assert whole > 1
    assert seen == [whole, 1, 1, 1, 1]  # the first batch goes both ways


def test_where_the_bits_are_others_the_tower_runs_whole(model, monkeypatch):
    inputs = inputs_of(model, "vision")
    expected = embed_inputs(model, *inputs)
    pooled = type(model).pooled
    monkeypatch.setattr(type(model), "pooled", lambda *given: pooled(*given) * 0 + 1)  # another token
    seen = tokens_of(model, VISION)
    assert all(embed_pooled(model, "vision", *inputs).equal(expected) for _ in range(2))
    assert model.pooled_alone == {("vision", COUNT): False}
    assert [tokens > 1 for tokens in seen] == [True, False, True]


def test_where_shapes_do_not_fit_the_tower_runs_whole(model, monkeypatch):
    inputs = inputs_of(model, "vision")
    expected = embed_inputs(model, *inputs)
    mlp = model.module.vision_model.encoder.layers[2].mlp
    inner = mlp.forward

    def whole(x):
        return inner(x).view(COUNT, -1)[:, : x[0].numel()].view_as(x)

    monkeypatch.setattr(mlp, "forward", whole)
    assert all(embed_pooled(model, "vision", *inputs).equal(expected) for _ in range(2))
    assert model.pooled_alone == {("vision", COUNT): False}


def test_few_rows_round_otherwise_so_they_run_whole(model):
    seen = tokens_of(model, VISION)
    embed_pooled(model, "vision", *inputs_of(model, "vision", FEW - 1))
    assert model.pooled_alone == {}
    assert len(seen) == 1


def test_nothing_is_left_behind(model):
    for tower in ("text", "vision"):
        embed_pooled(model, tower, *inputs_of(model, tower))
    assert not any(module._forward_pre_hooks for module in model.module.modules() if isinstance(module, nn.Linear))


@pytest.mark.parametrize("family", ["clip", "chinese-clip", "siglip", "coca", "open_clip", "open_clip mt5"])
def test_every_family_gives_its_own_bits(family, tmp_path):
    FAMILIES[family].make(tmp_path / "model")
    model = uwm.load(tmp_path / "model")
    for tower in model.modalities:
        inputs = inputs_of(model, tower)
        expected = embed_inputs(model, *inputs)
        assert all(embed_pooled(model, tower, *inputs).equal(expected) for _ in range(3)), tower
