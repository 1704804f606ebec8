"""Figures by cross-validation equal the obvious way: patch the model fold by fold, embed everything, take its rows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tuning.edits_of_all_kinds import changes_of

import uwm
from uwm.calibration import Preservation
from uwm.editing.editors import Proposal
from uwm.editing.making import make_patch
from uwm.embedding import embed, items_of, quadruples
from uwm.errors import BadInput, InvalidResult
from uwm.evaluation import differences
from uwm.figures import PAIRED, PRESERVED
from uwm.images import load_image
from uwm.knowledge import DataSet, zero_shot
from uwm.metrics import retrieval_samples, safeground_samples, with_means
from uwm.ranks import TIE
from uwm.statistics.batches import embed_inputs
from uwm.tuning import cross_validation as judging
from uwm.tuning.cross_validation import CrossValidation, Edits
from uwm.tuning.folds import Folds, draw_folds

NAMES = ("dog", "cat", "knife", "tree", "car", "cup", "bomb")
READING = {"batch_size": 5, "workers": 1}


@pytest.fixture(scope="module")
def model(tiny_hf):
    return uwm.load(tiny_hf)


@pytest.fixture(scope="module")
def calib(tiny_set):
    """16 pairs; some share a safe image, two of them lack images, one names a group with another."""
    pairs = [*uwm.read_calibration(tiny_set, split="calib").pairs]
    pairs[3] = replace(pairs[3], safe_image=pairs[8].safe_image)
    pairs[5], pairs[6] = (
        replace(pairs[5], group="one"),
        replace(pairs[6], group="one", unsafe_text=pairs[5].unsafe_text),
    )
    for row in (1, 12):
        pairs[row] = replace(pairs[row], safe_image=None, unsafe_image=None)
    return replace(uwm.read_calibration(tiny_set), pairs=tuple(pairs))


@pytest.fixture(scope="module")
def preserve(tiny_set):
    others = uwm.read_calibration(tiny_set, split="test").pairs
    images = [path for p in others for path in (p.safe_image, p.unsafe_image)]
    return Preservation(tuple(p.unsafe_text for p in others), tuple(images))


@pytest.fixture(scope="module")
def data_sets(tiny_set):
    images = [path for p in uwm.read_calibration(tiny_set).pairs for path in (p.safe_image, p.unsafe_image)]

    class Pictures:
        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            return load_image(images[index]), index % 7

    return {"noise": DataSet("noise", Pictures(), NAMES, ("a {}",), frozenset({"knife"}))}


@pytest.fixture(scope="module")
def folds(calib, preserve):
    return draw_folds(calib, preserve, seed=0)


@pytest.fixture(scope="module")
def validation(model, folds, data_sets):
    return CrossValidation(model, folds, data_sets, seed=0, **READING)


@pytest.fixture(scope="module")
def edits(model):
    """Each fold's edit is another: worked out at the pooled token, by running blocks, and of one tower alone."""
    return Edits(
        changes_of(model, ["text.proj", "vision.proj"], "set"),
        (
            changes_of(model, ["text.1.fc1", "vision.proj"]),
            changes_of(model, ["text.0.out_proj", "vision.1.fc2"], "add"),
            changes_of(model, ["vision.2.fc2"]),
        ),
    )


def patch_of(model, changes):
    return make_patch(model, Proposal(changes), {"method": "by hand"})


def slow_samples(model, folds, edits):
    """Figures query by query, in the order of the folds."""
    whole, found = quadruples(folds.together), []
    items = items_of(whole)
    for number, changes in enumerate(edits.folds):
        with uwm.patched(model, patch_of(model, changes)):
            embeddings = vars(embed(model, whole, batch_size=4, workers=1))
        ids = {pair.id for pair in folds.pairs[number].pairs}
        rows = [row for row, pair in enumerate(whole.pairs) if pair.id in ids]
        every = with_means(safeground_samples(**embeddings) | retrieval_samples(**embeddings, items=items))
        found.append({name: values[rows] for name, values in every.items()})
    return {name: torch.cat([part[name] for part in found]) for name in found[0]}


def test_figures_are_those_of_each_fold_under_its_own_edit(model, validation, folds, edits):
    result = validation.measure(edits, detailed=True)
    expected = slow_samples(model, folds, edits)
    assert validation.pairs == result.pairs == 14
    assert result.samples.keys() == expected.keys() == {*PAIRED}
    for name, values in expected.items():
        assert result.samples[name].tolist() == pytest.approx(values.tolist()), name
        assert result.figures[name][0] == pytest.approx(values.double().mean().item())
    changed = [name for name in PAIRED if not result.samples[name].equal(validation.baseline.samples[name])]
    assert {"PU", "unsafe_top1"} <= {*changed}
    assert len(changed) > 15
    concepts = [pair.concept for pair in quadruples(folds.together).pairs]
    deaths = [row for row, concept in enumerate(concepts) if concept == "death"]
    assert result.concept_pairs["death"] == len(deaths)
    assert result.by_concept["death"]["PU"][0] == pytest.approx(expected["PU"][deaths].double().mean().item())
    assert differences(result, validation.baseline)["PU"]["difference"][0] != 0


def test_means_alone_are_those_of_the_detailed_figures(validation, edits):
    detailed, means = (validation.measure(edits, detailed=chosen) for chosen in (True, False))
    there = {name for name in detailed.figures if not name.startswith(("R5_", "R10_", "R20_"))}
    assert means.figures.keys() == there
    for name in there:
        assert means.figures[name][0] == pytest.approx(detailed.figures[name][0]), name
        assert all(math.isnan(bound) for bound in means.figures[name][1:])  # nobody resampled
    assert means.zero_shot == detailed.zero_shot
    assert means.by_concept == {}


def test_data_sets_are_measured_under_the_whole_edit(model, validation, data_sets, edits):
    result = validation.measure(edits, detailed=False)
    with uwm.patched(model, patch_of(model, edits.whole)):
        expected = zero_shot(model, data_sets["noise"], batch_size=4)
    assert result.right["noise"].equal(expected.right)
    interval = expected.figures.pop("top1_interval")
    assert len(interval) == 2
    assert result.zero_shot["noise"] == expected.figures
    assert validation.baseline.right["noise"].equal(zero_shot(model, data_sets["noise"]).right)
    assert not validation.baseline.right["noise"].equal(expected.right)


@torch.no_grad()
def slow_preserved(model, folds, edits):
    """Input by input: whether the first result of the unedited model is as near as the nearest."""

    def vectors(captions, paths):
        texts = [embed_inputs(model, *model.tokenize([caption]))[0] for caption in captions]
        images = [embed_inputs(model, model.preprocess([load_image(path)]), None)[0] for path in paths]
        return [F.normalize(v, dim=-1) for v in texts], [F.normalize(v, dim=-1) for v in images]

    pairs = quadruples(folds.together).pairs
    safe_texts, safe_images = [{getattr(p, side) for p in pairs} for side in ("safe_text", "safe_image")]
    texts = [*safe_texts, *(text for part in folds.preserved for text in part.captions)]
    images = [*safe_images, *(path for part in folds.preserved for path in part.images)]
    before_texts, before_images = vectors(texts, images)
    kept = []
    for part, changes in zip(folds.preserved, edits.folds, strict=True):
        with uwm.patched(model, patch_of(model, changes)):
            now_texts, now_images = vectors(texts, images)
        for names, own, before, now, other_before, other_now in (
            (part.captions, texts, before_texts, now_texts, before_images, now_images),
            (part.images, images, before_images, now_images, before_texts, now_texts),
        ):
            for name in names:
                row = own.index(name)
                first = max(range(len(other_before)), key=lambda n: float(before[row] @ other_before[n]))
                cosines = [float(now[row] @ other) for other in other_now]
                kept.append(float(cosines[first] >= max(cosines) - TIE))
    return kept


def test_preserved_equals_an_obvious_loop(model, validation, folds, edits):
    result = validation.measure(edits, detailed=True)
    expected = slow_preserved(model, folds, edits)
    assert result.preserved.tolist() == expected
    assert 0 < sum(expected) < len(expected) == 24
    assert result.figures[PRESERVED][0] == pytest.approx(sum(expected) / 24)
    assert validation.baseline.figures[PRESERVED][0] == 1
    assert validation.measure(edits, detailed=False).figures[PRESERVED][0] == pytest.approx(sum(expected) / 24)


def test_the_model_is_unedited_afterwards(model, validation, edits, tiny_hf):
    validation.measure(edits, detailed=False)
    untouched = uwm.load(tiny_hf)
    assert not model.edited
    assert all(model.parameter(name).equal(untouched.parameter(name)) for name in model.tensors)


def test_an_edit_that_gives_no_numbers_is_refused(model, validation, edits):
    broken = {name: replace(change, factor=3e38) for name, change in changes_of(model, ["text.1.fc1"]).items()}
    with pytest.raises(InvalidResult, match="text tower: NaN or infinite"):
        validation.measure(Edits(edits.whole, (broken, {}, {})), detailed=False)
    assert not model.edited


def test_many_pairs_are_drawn_fold_by_fold(model, folds, monkeypatch):
    monkeypatch.setattr(judging, "MOST_PAIRS", 8)
    drawn = [CrossValidation(model, folds, {}, seed=seed, **READING) for seed in (0, 0, 1)]
    assert drawn[0].pairs in (7, 8, 9)
    assert drawn[0].baseline == drawn[1].baseline
    assert drawn[0]._whole.pairs == drawn[1]._whole.pairs != drawn[2]._whole.pairs
    places = [n for p in drawn[0]._whole.pairs for n, part in enumerate(folds.pairs) if p in part.pairs]
    assert places == sorted(places)
    assert {*places} == {0, 1, 2}
    assert drawn[0].baseline.preserved.tolist() == [1] * 24


def test_a_fold_without_complete_pairs_is_not_measured_and_none_at_all_refused(model, folds):
    bare = tuple(replace(p, safe_image=None) for p in folds.pairs[1].pairs)
    some = Folds((folds.pairs[0], replace(folds.pairs[1], pairs=bare), folds.pairs[2]), folds.preserved)
    validation = CrossValidation(model, some, {}, seed=0, **READING)
    assert validation.pairs == sum(p.has_image for n in (0, 2) for p in folds.pairs[n].pairs)
    assert (
        validation.measure(Edits({}, ({}, {}, {})), detailed=False).figures["PU"][0]
        == validation.baseline.figures["PU"][0]
    )
    none = tuple(replace(part, pairs=tuple(replace(p, safe_image=None) for p in part.pairs)) for part in folds.pairs)
    with pytest.raises(BadInput, match="no pair has both captions and images"):
        CrossValidation(model, Folds(none, folds.preserved), {}, seed=0, **READING)
