"""The folds that repel's detectors are judged on share no input; sets without shared inputs keep their folds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from telling_pairs import fed, proposed, telling_set

import uwm
from uwm.calibration import Preservation
from uwm.editing.closed_form.detector import fold_keys
from uwm.editing.closed_form.repel_fit import Fit
from uwm.errors import BadInput

EVERY = {"": torch.arange(30)}


@pytest.fixture(scope="module")
def telling(tmp_path_factory):
    return telling_set(tmp_path_factory.mktemp("sets") / "telling", 30)


@pytest.fixture(scope="module")
def model(tiny_hf):
    return uwm.load(tiny_hf)


def with_images_of(calib, number):
    """The set with each pair's safe image exchanged for that of another pair."""
    pairs = [replace(p, safe_image=calib.pairs[number(n)].safe_image) for n, p in enumerate(calib.pairs)]
    return replace(calib, pairs=tuple(pairs))


def test_pairs_that_share_an_image_share_their_fold(model, telling):
    """Ten safe images in three pairs each: a detector was judged on images that it was fitted to."""
    statistics, settings = fed(model, with_images_of(telling, lambda n: n % 10))
    fit = Fit(model, statistics, settings, 0)
    folds, _ = fit._folds("vision", EVERY)
    assert all(len({*folds[n::10].tolist()}) == 1 for n in range(10))
    assert sorted(folds.bincount().tolist()) == [6, 6, 6, 6, 6]
    captions, _ = fit._folds("text", EVERY)  # no caption is shared
    alone = Fit(model, fed(model, telling)[0], settings, 0)
    assert torch.equal(captions, alone._folds("text", EVERY)[0])
    assert not fit.proposal().warnings


def test_keys_of_pairs_that_share_nothing_are_their_own():
    assert fold_keys([(b"b", b"a"), (b"c", b"d"), (b"a", b"b")]) == ([b"ab", b"cd", b"ab"], True)
    assert fold_keys([(b"a", b"b"), (b"b", b"c"), (b"d", b"e"), (b"f", b"g")])[0] == [b"ab", b"ab", b"de", b"fg"]


def test_a_set_that_hangs_together_is_folded_pair_by_pair_with_a_warning(model, telling):
    (line,) = proposed(model, with_images_of(telling, lambda n: 0 if n % 3 else n)).warnings
    assert line.startswith("repel: most pairs are connected by vision inputs that they share")
    assert not proposed(model, telling).warnings


def test_preserved_inputs_that_are_unsafe_in_a_pair_share_its_fold(model, telling):
    preserve = Preservation(tuple(p.unsafe_text for p in telling.pairs[::-1]))
    statistics, settings = fed(model, telling, preserve=preserve)
    pairs, others = Fit(model, statistics, settings, 0)._folds("text", EVERY)
    assert torch.equal(others, pairs.flip(0))


def test_pairs_of_several_concepts_that_share_an_image_share_their_fold(model, telling):
    calib = with_images_of(telling, lambda n: n // 2)  # concepts go in turn: weapons, death, weapons
    statistics, settings = fed(model, calib, units="concept", folds=3)
    fit = Fit(model, statistics, settings, 0)
    folds, _ = fit._folds("vision", fit._groups("vision"))
    assert torch.equal(folds[::2], folds[1::2])
    assert all(len({*folds[rows].tolist()}) > 1 for rows in fit._groups("vision").values())


def test_a_concept_whose_images_all_hang_together_joins_others(model, telling):
    calib = with_images_of(telling, lambda n: 1 if n % 3 == 1 else n)  # all pairs of death share one
    fit = Fit(model, *fed(model, calib, units="concept"), 0)
    assert list(fit._groups("text")) == ["death", "weapons"]
    assert list(fit._groups("vision")) == ["other"]


def test_a_concept_that_cannot_be_held_out_is_refused(model, telling):
    fit = Fit(model, *fed(model, telling), 0)
    with pytest.raises(BadInput, match="inputs of concept 'death' are shared .* use --units one"):
        fit._folds("text", {"death": torch.tensor([1]), "weapons": torch.tensor([n for n in range(30) if n != 1])})
