"""Repel against its slow form, on uneven data: a short last batch, drifting means, more safe rows than unsafe ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import slow_repel as slow
from telling_pairs import fed, proposed, telling_set, values

import uwm
from uwm.calibration import Preservation
from uwm.editing.closed_form import detector as detectors
from uwm.editing.closed_form import repel_maths as maths
from uwm.editing.closed_form.repel_fit import Fit
from uwm.errors import BadInput, InvalidResult
from uwm.weights import WeightId

PENALTIES = (1e-4, 1e-2, 1.0)
CAPTIONS = tuple(f"a picture of {a} and skull number {n}" for n, a in enumerate("dog cat tree car cup dog cat".split()))


def uneven(seed=0, safe=37, unsafe=22, width=9):
    """Features whose mean and scale drift, one of them constant, one nearly so and one far from 0; folds of 5."""
    generator = torch.Generator().manual_seed(seed)
    sides = []
    for count, step in ((safe, 0.0), (unsafe, 0.8)):
        drift = torch.linspace(0.5, 3, count, dtype=torch.float64)[:, None]
        x = torch.randn(count, width, generator=generator, dtype=torch.float64) * drift + 2 * drift
        x[:, 1] += step * drift[:, 0]
        x[:, 3] += 3 * step
        x[:, 5], x[:, 7] = 4.0, 7.0 + 1e-9 * x[:, 7]
        x[:, 8] += 1e4
        sides.append(x)
    folds = tuple(torch.randint(0, 5, (len(x),), generator=generator) for x in sides)
    return *sides, folds


def test_the_detector_is_that_of_the_normal_equations():
    safe, unsafe, folds = uneven()
    found = detectors.fit_detector(safe, unsafe, folds, 4.0, sorted(PENALTIES, reverse=True))
    arrays = safe.numpy(), unsafe.numpy(), [fold.numpy() for fold in folds]
    w, b, *scores, auc, penalty = slow.detector(*arrays, 4.0, PENALTIES)
    assert found.penalty == penalty
    assert found.auc == pytest.approx(auc, abs=1e-12)
    np.testing.assert_allclose(found.weight, w, rtol=1e-6, atol=1e-9)
    assert found.bias == pytest.approx(b, rel=1e-6)
    np.testing.assert_allclose(found.safe, scores[0], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found.unsafe, scores[1], rtol=1e-6, atol=1e-7)
    assert float((unsafe @ found.weight).mean()) + found.bias == pytest.approx(1)
    assert found.weight[5] == pytest.approx(0, abs=1e-9)


def test_a_constant_feature_does_not_count_however_large_it_is():
    """Its deviation is rounding, which standardising would blow up."""
    safe, unsafe, folds = uneven()
    plain = detectors.fit_detector(safe, unsafe, folds, 4.0, [1e-3])
    generator = torch.Generator().manual_seed(0)
    for side in (safe, unsafe):
        side[:, 5] = 1e3 / 3 * (1 + 1e-7 * torch.randn(len(side), generator=generator, dtype=torch.float64))
    loud = detectors.fit_detector(safe, unsafe, folds, 4.0, [1e-3])
    torch.testing.assert_close(loud.safe, plain.safe, rtol=0, atol=1e-3)


def test_of_equally_good_penalties_the_strongest_is_taken():
    safe, unsafe, folds = uneven()
    unsafe[:, 3] += 100  # no detector errs
    found = detectors.fit_detector(safe, unsafe, folds, 4.0)
    assert (found.auc, found.penalty) == (1, 0.1)


def test_a_random_direction_is_as_long_and_catches_something():
    """Of few unsafe samples and a small share a direction easily finds none; it is drawn anew."""
    safe, unsafe, folds = uneven()
    found = detectors.fit_detector(safe, unsafe, folds, 4.0)
    _, std, _ = detectors.spread(safe, unsafe[:2])
    for seed in range(20):
        drawn = maths.random_detector(found, safe, unsafe[:2], 0.05, seed)
        assert float((drawn.weight * std).norm()) == pytest.approx(float((found.weight * std).norm()))
        maths.gate(drawn, 0.05)
        assert torch.equal(drawn.weight, maths.random_detector(found, safe, unsafe[:2], 0.05, seed).weight)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.93])
def test_the_gate_touches_no_more_safe_inputs_than_the_share(share):
    scores = np.round(np.random.default_rng(0).normal(size=53), 1)  # with ties
    theta = maths.threshold(torch.from_numpy(scores), share)
    assert theta == slow.threshold(scores, share)
    assert (scores > theta).mean() <= share
    assert maths.threshold(torch.from_numpy(np.repeat(scores, 3)), share) == theta


def test_the_gate_of_nothing_caught_is_refused():
    found = detectors.Detector(torch.ones(2), 0.0, 0.1, torch.arange(10.0), torch.full((4,), -1.0), 0.0)
    with pytest.raises(InvalidResult, match="finds 0.0 % of the unsafe inputs above its gate .AUC 0.00"):
        maths.gate(found, 0.2)


@pytest.mark.parametrize(("dim", "width", "empty"), [(6, 9, 0), (6, 9, 1), (8, 12, 4), (12, 9, 6), (30, 9, 14)])
def test_the_direction_is_empty_and_can_be_written(dim, width, empty):
    rng = np.random.default_rng(dim + empty)
    scale = np.concatenate([np.full(empty, 1e-4) * np.arange(1, empty + 1), np.ones(dim - empty)])
    turn = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    sides = [(rng.normal(size=(count, dim)) + 1) * scale @ turn for count in (70, 41, 33)]
    slopes = [rng.normal(size=(dim, width)) for _ in range(2)]
    e, energy = maths.empty_direction([torch.from_numpy(side) for side in sides], list(map(torch.from_numpy, slopes)))
    expected, of = slow.empty_direction(sides, slopes)
    np.testing.assert_allclose(e, expected, atol=1e-6)
    assert energy == pytest.approx(of, rel=1e-6)
    for slope in slopes:
        d = maths.push(torch.from_numpy(slope), e).numpy()
        np.testing.assert_allclose(d, slow.push(slope, e.numpy()), rtol=1e-6, atol=1e-9)
        assert e.numpy() @ slope @ d == pytest.approx(1)


def test_a_direction_that_a_tower_cannot_write_is_not_taken_and_is_refused():
    """A LayerNorm without a projection cannot write 1, and rounding makes that a tiny slope."""
    rng = np.random.default_rng(0)
    centre = np.eye(8) - 1 / 8 + 1e-9 * rng.normal(size=(8, 8))
    scale = np.diag([0, 0, 1, 1, 1, 1, 1, 1])
    turn = np.linalg.qr(np.column_stack([np.ones(8), rng.normal(size=(8, 7))]))[0].T  # its first row is 1 / √8
    side = torch.from_numpy(rng.normal(size=(50, 8)) @ scale @ turn)
    e, _ = maths.empty_direction([side], [torch.from_numpy(centre)])
    assert abs(float(e.sum())) < 1e-6
    assert maths.push(torch.from_numpy(centre), e).norm() < 2
    with pytest.raises(InvalidResult, match="can write 0 % of the direction"):
        maths.push(torch.from_numpy(centre), torch.full((8,), 8**-0.5, dtype=torch.float64))


def test_folds_are_by_content():
    keys = [bytes([n]) for n in (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 7)]
    groups = ["a" if n % 2 else "b" for n in range(len(keys))]
    found = detectors.draw_folds(keys, groups, 3, 0)
    order = np.random.default_rng(0).permutation(len(keys))
    again = detectors.draw_folds([keys[n] for n in order], [groups[n] for n in order], 3, 0)
    assert torch.equal(again, found[order])
    alone = detectors.draw_folds(keys, [""] * len(keys), 3, 0)
    assert alone[1] == alone[3]
    assert alone[4] == alone[8] == alone[10]
    assert sorted(np.bincount(alone[[0, 1, 2, 4, 5, 6, 7, 11, 12]])) == [3, 3, 3]
    for group in "ab":
        assert {int(fold) for fold, own in zip(found, groups, strict=True) if own == group} == {0, 1, 2}
    assert not torch.equal(detectors.draw_folds(keys, groups, 3, 1), found)
    assert detectors.draw_folds([b"x", b"y"], ["", ""], 5, 0).sort().values.tolist() == [0, 1]


# ---------------------------------------------------------------- from inputs of the model to new values


class Caught:
    """What a model's own modules get, one input at a time, found by plain hooks."""

    def __init__(self, model, calib, preserve):
        text, vision = (getattr(model.module, f"{tower}_model") for tower in ("text", "vision"))
        self.mlps = {"text": text.encoder.layers[1].mlp, "vision": vision.encoder.layers[2].mlp}
        self.norms = {"text": text.final_layer_norm, "vision": vision.post_layernorm}
        self.model = model
        pairs = calib.pairs
        captions = [[p.safe_text for p in pairs], [p.unsafe_text for p in pairs], preserve.captions]
        images = [[p.safe_image for p in pairs], [p.unsafe_image for p in pairs], preserve.images]
        self.sides = {"text": [[self.one("text", c) for c in s] for s in captions]}
        self.sides["vision"] = [[self.one("vision", i) for i in s] for s in images]

    def one(self, tower, thing):
        mlp, norm, seen = self.mlps[tower], self.norms[tower], {}
        handles = [
            module.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0]))
            for name, module in (("x", mlp.fc1), ("g", mlp.fc2), ("h", norm))
        ]
        with torch.no_grad():
            if tower == "text":
                z, token = self.model.encode_text(*self.model.tokenize([thing])), -1  # alone, it is not padded
            else:
                z, token = self.model.encode_image(self.model.preprocess([uwm.images.load_image(thing)])), 0
        for handle in handles:
            handle.remove()
        row = {name: (x[0, token] if x.ndim == 3 else x[0]).double().numpy() for name, x in seen.items()}
        return row | {"z": z[0].double().numpy()}

    def rows(self, tower, name, *sides):
        return np.array([one[name] for side in sides for one in self.sides[tower][side]])


def slow_edit(model, caught, folds, settings):
    """Name -> new values, and detectors, by the slow form alone."""
    projections = {"text": model.module.text_projection, "vision": model.module.visual_projection}
    slopes, found, reports = {}, {}, {}
    for tower, norm in caught.norms.items():
        matrix, gain = (t.weight.detach().double().numpy() for t in (projections[tower], norm))
        slopes[tower] = slow.jacobian(caught.rows(tower, "h", 0), gain, matrix, norm.eps)
    e, energy = slow.empty_direction([caught.rows(t, "z", 0, 1) for t in slopes], [*slopes.values()])
    for tower, block, sign in (("text", 1, 1), ("vision", 2, -1)):
        w2 = caught.mlps[tower].fc2.weight.detach().double().numpy()
        told = slow.detector(
            caught.rows(tower, "x", 0, 2), caught.rows(tower, "x", 1), folds[tower], 4.0, detectors.PENALTIES
        )
        number, carried = slow.least_used(caught.rows(tower, "g", 0, 2), w2)
        norm = np.mean([np.linalg.norm(z) for z in caught.rows(tower, "z", 0)])
        d = slow.push(slopes[tower], sign * e)
        row, bias, column = slow.unit(told, d, settings.share, settings.strength * norm)
        before = caught.mlps[tower].fc2.bias.detach().double().numpy()
        found |= {
            WeightId(tower, block, "fc1"): row, WeightId(tower, block, "fc1.bias"): [bias],
            WeightId(tower, block, "fc2"): column,
            WeightId(tower, block, "fc2.bias"): before - settings.lean * norm * d,
        }  # fmt: skip
        reports[tower] = {
            "detector_auc": told[4], "penalty": told[5], "unit": number, "direction_energy": energy,
            "unit_carried": carried[number] / np.sort(carried)[(len(carried) - 1) // 2],
        }  # fmt: skip
    return found, reports


@pytest.fixture(scope="module")
def telling(tmp_path_factory):
    return telling_set(tmp_path_factory.mktemp("sets") / "telling", 29)


def test_all_that_repel_sets_is_what_its_slow_form_sets(tiny_hf, telling):
    model = uwm.load(tiny_hf)
    preserve = Preservation(CAPTIONS, tuple(p.unsafe_image for p in telling.pairs[:4]))
    statistics, settings = fed(model, telling, 10, preserve)
    fit = Fit(model, statistics, settings, 0)
    everything = {"": torch.arange(29)}
    folds = {}
    for tower in ("text", "vision"):
        pairs, others = fit._folds(tower, everything)
        folds[tower] = [torch.cat([pairs, others]).numpy(), pairs.numpy()]
    proposal = fit.proposal()
    expected, reports = slow_edit(model, Caught(model, telling, preserve), folds, settings)
    assert proposal.changes.keys() == expected.keys()
    for name, wanted in expected.items():
        found = values(proposal.changes[name])
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-4 * max(map(abs, wanted)), err_msg=str(name))
    for tower, wanted in reports.items():
        told = proposal.report["towers"][tower]
        assert {key: told[key] for key in wanted} == pytest.approx(wanted, rel=1e-3)
        row = WeightId(tower, 1 if tower == "text" else 2, "fc1")
        assert proposal.changes[row].indices.tolist() == list(range(32 * told["unit"], 32 * told["unit"] + 32))


def test_preserved_inputs_that_are_in_pairs_share_their_folds(tiny_hf, telling):
    model = uwm.load(tiny_hf)
    captions = [p.safe_text for p in telling.pairs[::-1]]
    statistics, settings = fed(model, telling, preserve=Preservation((*captions, "a dog")))
    pairs, others = Fit(model, statistics, settings, 0)._folds("text", {"": torch.arange(29)})
    assert torch.equal(others[:29], pairs.flip(0))
    assert len(others) == 30


def test_a_set_of_one_pair_is_refused(tiny_hf, telling):
    model = uwm.load(tiny_hf)
    one = uwm.calibration.CalibrationSet(telling.pairs[:1] * 3, telling.root)
    with pytest.raises(BadInput, match="needs at least 2 different pairs for the text tower"):
        proposed(model, one)
