"""The mean Jacobian against its formula and against small steps; which inputs it is taken at; equal inputs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from reference.slow_repel import jacobian

import uwm
from uwm.errors import BadInput
from uwm.statistics import readout as readouts
from uwm.statistics.batches import pair_batches
from uwm.statistics.keys import InputKeys, digests
from uwm.statistics.passes import Part, run_pass
from uwm.statistics.readout import Readout
from uwm.weights import WeightId

TOWERS = ("text", "vision")


def outputs_of(model):
    return {tower: model.last_mlp(tower)[1] for tower in TOWERS}


def fed(model, calib, size=10, reducer=None):
    reducer = reducer or Readout(model, outputs_of(model))
    run_pass(model, pair_batches(model, calib, batch_size=size, towers=TOWERS), [reducer], TOWERS)
    return reducer


@pytest.mark.parametrize("library", ["tiny_hf", "tiny_open_clip"])
def test_equals_the_formula_for_a_layer_norm_and_a_projection(library, tiny_set, request):
    model, calib = uwm.load(request.getfixturevalue(library)), uwm.read_calibration(tiny_set)
    found = fed(model, calib)
    for tower in TOWERS:
        name = model.tensors[WeightId(tower, None, "norm")].key.removesuffix(".weight")
        norm, seen = model.module.get_submodule(name), []
        handle = norm.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].detach()))
        for batch in pair_batches(model, calib, batch_size=1, towers=[tower]):
            inputs, mask = batch.sides(tower)[0]
            with torch.no_grad():
                model.encode_image(inputs) if mask is None else model.encode_text(inputs, mask)
            token = 0 if mask is None else int(mask.sum()) - 1
            seen.append(seen.pop().reshape(-1, norm.normalized_shape[0])[token])
        handle.remove()
        gain, projection = norm.weight.detach(), model.parameter(WeightId(tower, None, "proj"))
        expected = jacobian(*(t.double().numpy() for t in (torch.stack(seen), gain, projection)), norm.eps)
        torch.testing.assert_close(found.jacobian(tower), torch.from_numpy(expected), rtol=0, atol=1e-5)


def test_neither_batches_nor_order_nor_copies_matter(tiny_hf, tiny_set, monkeypatch):
    """Of more inputs than it takes, too: which they are is decided by what they are."""
    monkeypatch.setattr(readouts, "SAMPLES", 9)
    model, calib = uwm.load(tiny_hf), uwm.read_calibration(tiny_set)
    turned = replace(calib, pairs=calib.pairs[::-1] * 2)
    one = fed(model, calib, 24)
    for other in (fed(model, calib, 5), fed(model, turned, 7)):
        for tower in TOWERS:
            torch.testing.assert_close(other.jacobian(tower), one.jacobian(tower), rtol=0, atol=1e-5)
            assert other.norm(tower) == pytest.approx(one.norm(tower), rel=1e-6)
    monkeypatch.setattr(readouts, "SAMPLES", 24)
    assert (fed(model, calib).jacobian("text") - one.jacobian("text")).abs().max() > 1e-3


def test_it_leaves_no_hooks_and_no_gradients(tiny_hf, tiny_set):
    model = uwm.load(tiny_hf)
    found = fed(model, uwm.read_calibration(tiny_set))
    found.jacobian("text")
    assert not any(module._forward_hooks for module in model.module.modules())
    assert all(parameter.grad is None for parameter in model.module.parameters())


def test_an_embedding_of_several_tokens_is_refused(tiny_hf, tiny_set, monkeypatch):
    model = uwm.load(tiny_hf)
    found = fed(model, uwm.read_calibration(tiny_set), reducer=Readout(model, {"vision": WeightId("vision", 1, "fc2")}))
    with pytest.raises(BadInput, match=r"vision\.1\.fc2: the embedding of the vision tower reads several tokens"):
        found.jacobian("vision")


def test_a_pass_without_the_towers_it_reads_keeps_norms_only(tiny_hf, tiny_set):
    model = uwm.load(tiny_hf)
    found = fed(model, uwm.read_calibration(tiny_set), reducer=Readout(model, {}))
    assert found.norm("vision") > 0
    assert found.layers("text") == ()


def test_digests_are_of_the_input_and_not_of_its_padding():
    ids = torch.tensor([[5, 6, 7, 0], [5, 6, 0, 0], [5, 6, 7, 9]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0]])
    a, b, c = digests(ids, mask)
    assert a == c != b
    assert digests(ids[1:2, :2], mask[1:2, :2]) == [b]
    pictures = torch.randn(3, 3, 4, 4)
    assert digests(pictures, None) == [digests(picture[None], None)[0] for picture in pictures]
    assert len({*digests(pictures.bfloat16(), None)}) == 3


def test_keys_by_tower_and_side_in_the_order_of_the_pass(tiny_hf, tiny_set):
    model, calib = uwm.load(tiny_hf), uwm.read_calibration(tiny_set)
    found, parts = (fed(model, calib, size, InputKeys()) for size in (24, 7))
    for tower in TOWERS:
        assert found.sides(tower) == parts.sides(tower)
        assert [len(side) for side in found.sides(tower)] == [24, 24]
        assert len({*found.sides(tower)[0], *found.sides(tower)[1]}) == 48
    assert InputKeys().sides("text") == []
    alone = InputKeys()
    alone.update(Part("text", 0, (torch.ones(2, 3),), ((torch.ones(2, 4).long(), torch.ones(2, 4)),)))
    assert [len(side) for side in alone.sides("text")] == [2]
