"""Embeddings kept on the way are those that the model gives, whatever the batches."""

from __future__ import annotations

import pytest
import torch

import uwm
from uwm.embedding import embed_tower
from uwm.errors import InvalidResult
from uwm.statistics.batches import pair_batches
from uwm.statistics.embeddings import PairEmbeddings
from uwm.statistics.passes import Part, run_pass


@pytest.mark.parametrize("size", [7, 24])
def test_equals_the_embeddings_of_the_evaluation(tiny_hf, tiny_set, size):
    model, calib = uwm.load(tiny_hf), uwm.read_calibration(tiny_set)
    kept = PairEmbeddings()
    run_pass(model, pair_batches(model, calib, batch_size=size, towers=("text", "vision")), [kept], ("text", "vision"))
    for tower in ("text", "vision"):
        for found, expected in zip(kept.sides(tower), embed_tower(model, calib, tower), strict=True):
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_a_preservation_pass_keeps_the_safe_side():
    kept, x = PairEmbeddings(), torch.randn(5, 4)
    for rows in (x[:3], x[3:]):
        kept.update(Part("text", 0, (rows,)))
    (safe,) = kept.sides("text")
    torch.testing.assert_close(safe, x / x.norm(dim=1, keepdim=True))
    assert kept.sides("vision") == []


def test_nan_names_the_tower_and_the_pair():
    part = Part("vision", 20, (torch.ones(3, 2), torch.tensor([[1.0, 1.0], [1.0, float("inf")], [1.0, 1.0]])))
    with pytest.raises(InvalidResult, match="vision tower: NaN or infinite embeddings at pair 21"):
        PairEmbeddings().update(part)
