"""Losses on embeddings: against loops over rows, by finite differences, and for no rows at all."""

from __future__ import annotations

import pytest
import torch
from reference import slow_losses

from uwm.losses import contrastive, cosine_distance, relative_redirection

PAIRS = {"cosine_distance": (cosine_distance, slow_losses.distance, 2)}
PAIRS |= {"contrastive": (contrastive, slow_losses.clip_loss, 2)}
PAIRS |= {"relative_redirection": (relative_redirection, slow_losses.relative, 3)}


def inputs(count, n=7, dim=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, dim, generator=generator, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("n", [1, 2, 7])
def test_equals_the_slow_form(name, n):
    fast, slow, count = PAIRS[name]
    given = inputs(count, n)
    assert float(fast(*given)) == pytest.approx(slow(*(side.tolist() for side in given)), rel=1e-12, abs=1e-12)
    assert float(fast(*(side.float() for side in given))) == pytest.approx(float(fast(*given)), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", PAIRS)
def test_gradients_are_those_of_finite_differences(name):
    fast, _, count = PAIRS[name]
    given = [side.requires_grad_() for side in inputs(count, n=4, dim=3)]
    assert torch.autograd.gradcheck(fast, given)


@pytest.mark.parametrize("name", PAIRS)
def test_no_rows_are_zero_with_a_gradient(name):
    fast, _, count = PAIRS[name]
    given = inputs(count, n=0)
    given[0].requires_grad_()
    found = fast(*given)
    found.backward()
    assert float(found.detach()) == 0
    assert given[0].grad.shape == (0, 5)


def test_an_unsafe_item_halfway_is_redirected_by_log_2():
    away, towards = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    between, there, far = torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 3.0]]), torch.tensor([[2.0, 0.0]])
    found = [float(relative_redirection(moved, away, towards)) for moved in (there, between, far)]
    assert found == pytest.approx([0.313262, 0.693147, 1.313262], abs=1e-5)
