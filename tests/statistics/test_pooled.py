"""Inputs at the pooled token: the right row of every sample, whatever the batches and the padding."""

from __future__ import annotations

import pytest
import torch
from tiny_pooling import AllTokens, FirstToken, LastToken

import uwm
from uwm.errors import BadInput
from uwm.statistics.batches import pair_batches
from uwm.statistics.moments import InputMoments, counted_tokens
from uwm.statistics.passes import SAFE, UNSAFE, run_pass
from uwm.statistics.pooled import PooledInputs, PooledToken
from uwm.weights import WeightId

FC1, HEAD = WeightId("text", 1, "fc1"), WeightId("vision", 2, "fc1")


@pytest.mark.parametrize("size", [1, 4, 7])
@pytest.mark.parametrize("pooling", [LastToken, FirstToken])
def test_one_row_a_sample(size, pooling):
    generator = torch.Generator().manual_seed(0)
    sides = torch.randn(2, 7, 5, 3, generator=generator)
    lengths = torch.randint(1, 6, (2, 7), generator=generator)
    reducer = PooledInputs(pooling(), [FC1, HEAD])
    for start in range(0, 7, size):
        for side in (SAFE, UNSAFE):
            rows = slice(start, start + size)
            reducer.take(FC1, side, sides[side][rows], (torch.arange(5) < lengths[side][rows, None]).long())
    for side, found in enumerate(reducer.sides(FC1)):
        token = lengths[side] - 1 if pooling is LastToken else torch.zeros(7, dtype=torch.long)
        assert torch.equal(found, torch.stack([sides[side][n, token[n]] for n in range(7)]))
    assert reducer.sides(HEAD) == []
    assert reducer.layers("vision") == [HEAD]


def test_without_a_mask_and_in_half_precision():
    x = torch.randn(2, 5, 3).half()
    found = PooledToken(LastToken())(FC1, x, None)
    assert torch.equal(found, x[:, -1])
    reducer = PooledInputs(LastToken(), [FC1])
    reducer.take(FC1, SAFE, x, None)
    (safe,) = reducer.sides(FC1)
    assert torch.equal(safe, x[:, -1].float())


def test_a_layer_after_the_pooling_has_one_token():
    x = torch.randn(4, 1, 3)
    assert torch.equal(PooledToken(AllTokens())(HEAD, x, None), x[:, 0])


def test_several_pooled_tokens_are_refused():
    with pytest.raises(BadInput, match=r"vision\.2\.fc1: the embedding of the vision tower is read from several"):
        PooledToken(AllTokens())(HEAD, torch.randn(4, 6, 3), None)


def test_several_pooled_tokens_are_read_by_another_rule_where_one_is_given():
    x, mask = torch.randn(4, 6, 3), (torch.arange(6) < torch.tensor([6, 2, 1, 3])[:, None]).long()
    assert PooledToken(AllTokens(), counted_tokens)(HEAD, x, mask).shape == (12, 3)
    assert PooledToken(AllTokens(), counted_tokens)(HEAD, x, None).shape == (24, 3)
    assert torch.equal(PooledToken(FirstToken(), counted_tokens)(HEAD, x, mask), x[:, 0])


def test_the_pooled_row_leads_to_the_embedding(tiny_hf, tiny_set):
    """The last block's fc1 input at the end token, through the rest of the tower by hand, is the embedding."""
    model, calib = uwm.load(tiny_hf), uwm.read_calibration(tiny_set)
    batches = list(pair_batches(model, calib, batch_size=10, towers=["text"]))
    reducer, moments = PooledInputs(LastToken(), [FC1]), InputMoments([FC1], PooledToken(LastToken()))
    run_pass(model, batches, [reducer, moments], ["text"])
    end = []
    norm = model.module.text_model.encoder.layers[1].layer_norm2
    handle = norm.register_forward_hook(lambda _, __, y: end.append(y))
    for batch in batches:
        ids, mask = batch.sides("text")[UNSAFE]
        with torch.no_grad():
            model.encode_text(ids, mask)
        end.append(end.pop()[torch.arange(len(ids)), mask.sum(1) - 1])
    handle.remove()
    torch.testing.assert_close(reducer.sides(FC1)[UNSAFE], torch.cat(end))
    assert moments.moments[FC1, UNSAFE].count == 24
    torch.testing.assert_close(moments.moments[FC1, UNSAFE].mean, torch.cat(end).double().mean(0))
