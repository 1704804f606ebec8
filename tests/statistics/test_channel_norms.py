"""Token statistics against torch, and their way to the scorers."""

from __future__ import annotations

import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from uwm.statistics.channel_norms import ChannelNorms, Counted, _one_by_one, _together, token_statistics
from uwm.statistics.passes import SAFE, UNSAFE, Part
from uwm.weights import WeightId


def test_statistics_against_torch_on_every_length():
    x = torch.randn(4, 6, 5) + 2
    mask = (torch.arange(6) < torch.tensor([6, 4, 2, 1])[:, None]).long()
    found = token_statistics(x, mask)
    for row, length in enumerate((6, 4, 2, 1)):
        kept = x[row, :length].double()
        torch.testing.assert_close(found.norm[row], kept.norm(dim=0).float(), rtol=1e-6, atol=0)
        expected = kept.std(dim=0).float() if length > 1 else torch.zeros(5)
        torch.testing.assert_close(found.std[row], expected, rtol=1e-6, atol=0)
    assert found.tokens.tolist() == [6, 4, 2, 1]


def test_without_a_mask_all_tokens_count():
    x = torch.randn(3, 6, 5)
    full = token_statistics(x, torch.ones(3, 6, dtype=torch.long))
    found = token_statistics(x)
    assert torch.equal(found.norm, full.norm)
    assert torch.equal(found.std, full.std)


def assert_as_torch(found, row, kept):
    kept = kept.double()
    torch.testing.assert_close(found.norm[row], kept.norm(dim=0).float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.std[row], kept.std(dim=0).float(), rtol=1e-6, atol=0)


def test_a_mask_with_gaps_and_layers_laid_out_tokens_first():
    x = (torch.randn(5, 2, 3) + 2).transpose(0, 1)  # as an attention that is not batch-first gives it
    mask = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 1, 1, 0]])
    found = token_statistics(x, mask)
    for row in range(2):
        assert_as_torch(found, row, x[row, mask[row].bool()])


@pytest.mark.parametrize("tokens", [127, 128, 129, 300])
def test_long_inputs_are_summed_in_slabs(tokens):
    x = torch.randn(2, tokens, 4) * torch.tensor([1, 10, 0.1, 1]) + torch.tensor([0, 100, 0, 5])
    found = token_statistics(x)
    for row in range(2):
        assert_as_torch(found, row, x[row])


def test_f46_a_constant_channel_of_many_tokens_stays_constant():
    found = token_statistics(torch.full((1, 5000, 2), 0.7))
    assert (found.std < 1e-7 * found.norm).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_summed_in_float32(dtype):
    x = (torch.randn(2, 200, 3) + 1).to(dtype)
    found = token_statistics(x)
    for row in range(2):
        assert_as_torch(found, row, x[row])


@pytest.mark.parametrize("masked", [False, True])
def test_the_form_for_accelerators_gives_the_same(masked):
    torch.manual_seed(0)
    x, mask = torch.randn(3, 6, 7) + 2, torch.tensor([[1, 1, 1, 1, 0, 0], [1, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]])
    x[:, :, 5] += 3000  # Σ x² less tokens · mean² would leave only rounding
    x[1, :, 6] = 0.7
    one, all_at_once = (form(x, Counted(x, mask if masked else None)) for form in (_one_by_one, _together))
    for a, b in zip(one, all_at_once, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_is_not_finite_where_the_input_is_not(value, dtype):
    x = torch.randn(3, 150, 4).to(dtype)
    x[1, 140, 2] = value
    assert torch.isfinite(token_statistics(x).norm).all(1).tolist() == [True, False, True]
    counts = torch.ones(3, 150, dtype=torch.long)
    counts[1, 140:] = 0
    assert torch.isfinite(token_statistics(x, counts).norm).all()


class Scorer:
    def __init__(self):
        self.batches = []

    def update(self, safe, unsafe):
        self.batches.append((deepcopy(safe), deepcopy(unsafe)))


def test_every_scorer_gets_its_own_weight_of_the_tower_that_ran():
    weights = [WeightId("text", 0, "fc2"), WeightId("text", 1, "fc2"), WeightId("vision", 0, "fc2")]
    reducer = ChannelNorms({weight: Scorer() for weight in weights})
    assert reducer.layers("text") == weights[:2]
    x = {(weight, side): torch.randn(3, 4, 5) for weight in weights[:2] for side in (SAFE, UNSAFE)}
    for (weight, side), inputs in x.items():
        reducer.take(weight, side, inputs, None)
    reducer.update(Part("text", 0, (torch.zeros(3, 2), torch.zeros(3, 2))))
    for weight in weights[:2]:
        ((safe, unsafe),) = reducer.scorers[weight].batches
        for found, side in ((safe, SAFE), (unsafe, UNSAFE)):
            expected = token_statistics(x[weight, side])
            assert torch.equal(found.norm, expected.norm.float())
            assert torch.equal(found.std, expected.std.float())
    assert reducer.scorers[weights[2]].batches == []


class Keeping:
    """Keeps copies of what it is fed."""

    def __init__(self):
        self.fed = []

    def update(self, safe, unsafe):
        self.fed.append((safe.norm.clone(), safe.std.clone(), unsafe.norm.clone(), unsafe.std.clone()))


@pytest.mark.parametrize("apart", [False, True], ids=["joined at once", "kept apart"])
def test_the_safe_side_of_every_layer_stays_until_the_unsafe_side_has_run(apart):
    """Layers of growing width, batches of changing size, and a side that a failure cut off."""
    weights = [WeightId("text", block, "fc2") for block in range(4)]
    scorers = {weight: Keeping() for weight in weights}
    reducer = ChannelNorms(scorers)
    reducer._given = [] if apart else None
    expected = {weight: [] for weight in weights}
    for samples in (3, 5, 2):
        reducer.take(weights[0], SAFE, torch.randn(samples, 6, 4), None)  # cut off: the safe side runs anew
        inputs = {w: [torch.randn(samples, 6, 4 + 3 * w.block) for _ in range(2)] for w in weights}
        for side in (SAFE, UNSAFE):
            for weight in weights:
                reducer.take(weight, side, inputs[weight][side], None)
        for weight, sides in inputs.items():
            found = [token_statistics(x) for x in sides]
            rounded = [value.float() for one in found for value in (one.norm, one.std)]
            expected[weight].append(rounded)
    for item in reducer._given or ():
        reducer.join(item)
    for weight, scorer in scorers.items():
        for fed, rounded in zip(scorer.fed, expected[weight], strict=True):
            assert all(a.equal(b) for a, b in zip(fed, rounded, strict=True))


def test_the_kernel_for_cuda_gives_the_same():
    pytest.importorskip("triton")
    script = Path(__file__).with_name("compare_kernels.py")  # a process of its own: Triton looks at this when imported
    subprocess.run([sys.executable, script, "cpu"], env=os.environ | {"TRITON_INTERPRET": "1"}, check=True, timeout=300)
