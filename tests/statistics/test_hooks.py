"""Observing changes nothing, sees what the layer sees, and leaves nothing behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from uwm.statistics.hooks import observe
from uwm.weights import WeightId

OUT_PROJ = WeightId("text", 0, "out_proj")


def attention(batch_first=True, bias=True):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(12, 3, batch_first=batch_first, bias=bias).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_gives_the_same_output_and_shows_the_projection_s_input(batch_first, bias, causal):
    module = attention(batch_first, bias)
    x = torch.randn(2, 5, 12)
    mask = torch.full((5, 5), float("-inf")).triu(1) if causal else None
    given = x if batch_first else x.transpose(0, 1)
    seen = {}
    with torch.no_grad():
        expected = module(given, given, given, need_weights=False, attn_mask=mask)[0]
        with observe({OUT_PROJ: module}, seen.__setitem__):
            found = module(given, given, given, need_weights=False, attn_mask=mask)[0]
    torch.testing.assert_close(found, expected)
    assert seen[OUT_PROJ].shape == (2, 5, 12)
    projected = module.out_proj(seen[OUT_PROJ])
    torch.testing.assert_close(projected if batch_first else projected.transpose(0, 1), expected)


def test_fused_query_projection_sees_the_attention_s_input():
    module, seen, x = attention(), {}, torch.randn(2, 5, 12)
    weight = WeightId("text", 0, "q_proj")
    with observe({weight: module}, seen.__setitem__):
        module(x, x, x, need_weights=False)
    assert torch.equal(seen[weight], x)


def test_nothing_stays_behind_also_when_the_body_raises():
    linear, module = nn.Linear(12, 4), attention()
    foreign = linear.register_forward_pre_hook(lambda *_: None)
    layers = {WeightId("text", 0, "fc1"): linear, OUT_PROJ: module}
    with pytest.raises(KeyError), observe(layers, lambda *_: None):
        raise KeyError
    assert "forward" not in vars(module)
    assert not module.out_proj._forward_pre_hooks
    assert list(linear._forward_pre_hooks) == [foreign.id]
