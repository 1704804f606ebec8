"""Directional ablation against its definition entry by entry, and its theorems."""

from __future__ import annotations

import pytest
import torch
from reference.slow_closed_form import ablated

import uwm
from uwm.editing.closed_form.ablate_maths import ablate_bias, ablate_matrix, direction
from uwm.errors import InvalidResult
from uwm.statistics.batches import pair_batches
from uwm.statistics.hooks import observe_outputs
from uwm.statistics.moments import counted_tokens
from uwm.statistics.passes import SAFE, UNSAFE, run_pass
from uwm.statistics.residuals import ResidualMeans
from uwm.weights import WeightId

WIDTH, IN = 5, 7


def make():
    generator = torch.Generator().manual_seed(0)
    safe, unsafe = torch.randn(2, WIDTH, generator=generator) + 10
    return torch.randn(WIDTH, IN, generator=generator), torch.randn(WIDTH, generator=generator), direction(safe, unsafe)


def edited(weight, unit, strength):
    left, right = ablate_matrix(weight, unit, strength)
    assert left.shape == (WIDTH, 1)
    assert right.shape == (IN, 1)
    return weight.double() + left @ right.T


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.0])
def test_equals_the_definition(strength):
    weight, bias, unit = make()
    expected = ablated(weight, unit, strength)
    torch.testing.assert_close(edited(weight, unit, strength), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        ablate_bias(bias, unit, strength), ablated(bias[:, None], unit, strength)[:, 0], rtol=1e-12, atol=1e-12
    )


def test_the_output_has_no_part_along_the_direction():
    weight, bias, unit = make()
    x = torch.randn(9, IN).double()
    before = x @ weight.double().T + bias.double()
    after = x @ edited(weight, unit, 1.0).T + ablate_bias(bias, unit)
    assert (after @ unit).abs().max() < 1e-12
    assert (before @ unit).abs().min() > 1e-3
    torch.testing.assert_close(after, before - torch.outer(before @ unit, unit))  # all else stays


def test_once_more_changes_nothing_and_a_reflection_keeps_norms():
    weight, bias, unit = make()
    once = edited(weight, unit, 1.0)
    torch.testing.assert_close(edited(once, unit, 1.0), once)
    mirrored = edited(weight, unit, 2.0)
    torch.testing.assert_close(mirrored.norm(dim=0), weight.double().norm(dim=0))
    torch.testing.assert_close(edited(mirrored, unit, 2.0), weight.double())
    torch.testing.assert_close(ablate_bias(ablate_bias(bias, unit, 2.0), unit, 2.0), bias.double())


def test_the_direction_points_from_safe_to_unsafe():
    safe, unsafe = torch.tensor([1.0, 1.0]), torch.tensor([4.0, 5.0])
    torch.testing.assert_close(direction(safe, unsafe), torch.tensor([0.6, 0.8]).double())
    torch.testing.assert_close(direction(unsafe, safe), -torch.tensor([0.6, 0.8]).double())
    with pytest.raises(InvalidResult, match="are equal: there is no direction"):
        direction(safe, safe)


def test_in_a_real_model_no_block_writes_along_the_direction(tiny_hf, tiny_set):
    """All of out_proj and fc2: what every block adds to the stream is orthogonal to r, so the means' step along r is
    that of the first block's input, the same after every block."""
    model, calib = uwm.load(tiny_hf), uwm.read_calibration(tiny_set)
    batches = list(pair_batches(model, calib, batch_size=10, towers=["vision"]))
    means = ResidualMeans([("vision", 1)])
    run_pass(model, batches, [means], ["vision"])
    unit = direction(*(means.means["vision", 1, side].mean for side in (SAFE, UNSAFE)))
    for block in range(3):
        for slot in ("out_proj", "fc2"):
            name = WeightId("vision", block, slot)
            left, right = ablate_matrix(model.parameter(name), unit)
            model.parameter(name).add_((left @ right.T).float())
            owner = model.owner(name)
            owner.bias.data = ablate_bias(owner.bias.data, unit).float()
    written = {}
    modules = {name: model.owner(name) for name in model.weights if name.tower == "vision" and name.slot == "fc2"}
    with observe_outputs(modules, written.__setitem__), torch.no_grad():
        model.encode_image(batches[0].unsafe_pixel_values)
    assert len(written) == 3
    for name, y in written.items():
        rows = counted_tokens(name, y, None).double()
        assert (rows @ unit).abs().max() < 1e-5 * rows.norm(dim=1).max()
