"""Token statistics, and a profile that refuses to be silent about a layer it did not see."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import uwm
from uwm.editing.entries.uwm import UwmScorer
from uwm.errors import InvalidResult
from uwm.statistics.batches import pair_batches
from uwm.statistics.channel_norms import token_statistics
from uwm.statistics.passes import profile
from uwm.weights import match


def test_statistics_against_torch_on_every_length():
    x = torch.randn(4, 6, 5) + 2
    mask = (torch.arange(6) < torch.tensor([6, 4, 2, 1])[:, None]).long()
    found = token_statistics(x, mask)
    for row, length in enumerate((6, 4, 2, 1)):
        kept = x[row, :length].double()
        torch.testing.assert_close(found.norm[row], kept.norm(dim=0), rtol=1e-6, atol=0)
        expected = kept.std(dim=0) if length > 1 else torch.zeros(5).double()
        torch.testing.assert_close(found.std[row], expected, rtol=1e-6, atol=0)
    assert found.tokens.tolist() == [6, 4, 2, 1]


def test_without_a_mask_all_tokens_count():
    x = torch.randn(3, 6, 5)
    full = token_statistics(x, torch.ones(3, 6, dtype=torch.long))
    found = token_statistics(x)
    assert torch.equal(found.norm, full.norm)
    assert torch.equal(found.std, full.std)


@pytest.fixture
def model(tiny_hf):
    return uwm.load(tiny_hf)


@pytest.fixture
def batches(model, tiny_set):
    return list(pair_batches(model, uwm.read_calibration(tiny_set), batch_size=10, towers=("text", "vision")))


def scorers_of(model, tower, slot):
    return {w: UwmScorer(w, model.parameter(w)) for w in match(slot, model.weights, tower)}


def test_only_the_towers_asked_for_are_run(model, batches):
    assert profile(model, batches, scorers_of(model, "text", "fc2")) == {"text": 24}
    assert profile(model, batches, scorers_of(model, "vision", "fc2")) == {"vision": 24}


def test_a_layer_that_is_never_called_is_an_error(model, batches):
    """A block that skips its MLP: the hook does not fire."""
    block = model.module.text_model.encoder.layers[1]
    block.mlp.forward = lambda x: x
    with pytest.raises(InvalidResult, match=r"text\.1\.fc2 received 0 activations for 10 samples"):
        profile(model, batches, scorers_of(model, "text", "fc2"))


def test_a_layer_that_sees_fewer_rows_is_an_error(model, batches):
    fc2 = model.module.vision_model.encoder.layers[0].mlp.fc2
    original = fc2.forward
    fc2.register_forward_pre_hook(lambda _, args: (args[0][:5],))
    fc2.forward = lambda x: original(torch.cat([x, x]))
    with pytest.raises(InvalidResult, match=r"vision\.0\.fc2 received 5 activations for 10 samples"):
        profile(model, batches, scorers_of(model, "vision", "fc2"))


def test_a_set_without_pairs_for_the_tower_is_an_error(model, batches):
    texts = [b for b in batches if b.safe_input_ids is not None]
    with pytest.raises(InvalidResult, match=r"vision\.0\.fc2 received no activations"):
        profile(model, texts, scorers_of(model, "vision", "fc2"))


def test_nan_names_the_layer_and_the_pair(model, batches):
    pictures = [b for b in batches if b.safe_pixel_values is not None]
    broken = pictures[1].unsafe_pixel_values.clone()
    broken[3] = float("nan")
    pictures[1] = replace(pictures[1], unsafe_pixel_values=broken)
    with pytest.raises(InvalidResult, match=r"vision\.0\.fc2: NaN or infinite activations at pair 13"):
        profile(model, pictures, scorers_of(model, "vision", "fc2"))
