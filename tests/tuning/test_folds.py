"""Folds share no caption and no image; the statistics without each of them come of one pass."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.slow_groups import slow_connected, slow_items
from shared_pairs import five_a_image
from telling_pairs import telling_set

import uwm
from uwm.calibration import CalibrationPair, CalibrationSet, Preservation
from uwm.editing.changes import SetEntries
from uwm.editing.editors import find_editor
from uwm.editing.making import about, gather
from uwm.editing.settings import make
from uwm.errors import BadInput
from uwm.tuning.folds import FOLDS, Profile, draw_folds
from uwm.weights import WeightId

NAMES = ("repel", "redirect", "null-space", "hidden-units", "uwm", "grad-unsafe")


# ---------------------------------------------------------------- the folds


@st.composite
def sets(draw):
    """Pairs of captions, of which some are shared on any side; their case does not tell them apart."""
    count = draw(st.integers(2, 14))
    number = st.integers(0, draw(st.integers(1, 40)))
    word = st.tuples(number, st.booleans()).map(lambda drawn: f"{'A' if drawn[1] else 'a'} dog {drawn[0]}")
    pairs = [CalibrationPair(str(n), safe_text=draw(word), unsafe_text=draw(word)) for n in range(count)]
    return CalibrationSet(tuple(pairs), Path("drawn"))


@settings(max_examples=150, deadline=None, database=None)
@given(sets(), st.integers(0, 3), st.integers(2, 4))
def test_folds_share_nothing_and_hold_everything(calib, seed, count):
    groups = slow_connected([slow_items(pair) for pair in calib.pairs])
    different = {frozenset(group) for group in groups}
    if len(different) < 2:
        with pytest.raises(BadInput, match="no fold can be held out"):
            draw_folds(calib, None, seed, count)
        return
    folds = draw_folds(calib, None, seed, count)
    assert len(folds) == len(folds.preserved) == min(count, len(different))
    places = {pair.id: number for number, part in enumerate(folds.pairs) for pair in part.pairs}
    assert sorted(places, key=int) == [pair.id for pair in calib.pairs]
    for group in different:
        assert len({places[str(row)] for row in group}) == 1
    items = [{item for pair in part.pairs for item in slow_items(pair)} for part in folds.pairs]
    assert sum(map(len, items)) == len(set().union(*items))
    sizes = [len(part) for part in folds.pairs]
    assert max(sizes) - min(sizes) <= max(map(len, different))
    assert min(sizes) >= 1


def test_pairs_that_share_an_image_lie_in_one_fold(tmp_path):
    calib = uwm.read_calibration(five_a_image(tmp_path / "five"))
    folds = draw_folds(calib, None, seed=0)
    assert [len(part) for part in folds.pairs] == [20, 20, 20]
    images = [{pair.safe_image for pair in part.pairs} for part in folds.pairs]
    assert [len(own) for own in images] == [4, 4, 4]
    assert len(set.union(*images)) == 12
    assert folds.together.pairs == tuple(pair for part in folds.pairs for pair in part.pairs)
    assert (folds.without(None), folds.without(1)) == ((0, 1, 2), (0, 2))


def test_folds_of_uneven_groups_are_balanced():
    """Groups of 5, 4, 3, 3 and 3 pairs: 8 and 10, where taking turns gives 11 and 7."""
    captions = [f"a dog {group}" for group, size in enumerate((5, 4, 3, 3, 3)) for _ in range(size)]
    pairs = [CalibrationPair(str(n), safe_text=text, unsafe_text=f"a knife {n}") for n, text in enumerate(captions)]
    folds = draw_folds(CalibrationSet(tuple(pairs), Path("made")), None, seed=0, count=2)
    assert sorted(len(part) for part in folds.pairs) == [8, 10]


def test_the_seed_draws_the_folds(tmp_path):
    calib = uwm.read_calibration(five_a_image(tmp_path / "five"))
    drawn = [draw_folds(calib, None, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1]
    assert drawn[0].pairs != drawn[2].pairs


def test_one_connected_group_is_refused(tmp_path):
    calib = uwm.read_calibration(five_a_image(tmp_path / "five"))
    chained = replace(calib, pairs=tuple(replace(pair, safe_text="one caption") for pair in calib.pairs))
    with pytest.raises(BadInput, match="all 60 pairs are connected by captions or images that they share") as told:
        draw_folds(chained, None, 0)
    assert "give the pairs captions and images of their own" in str(told.value)


def test_preserved_items_of_a_pair_lie_in_its_fold(tmp_path):
    calib = uwm.read_calibration(five_a_image(tmp_path / "five"))
    copies = []
    for number, pair in enumerate(calib.pairs[:12]):
        copies.append(tmp_path / f"copy{number}.png")
        copies[-1].write_bytes(pair.safe_image.read_bytes())
    own = tuple(pair.safe_text.upper() for pair in calib.pairs[:20])
    others = tuple(f"a tree number {n}" for n in range(60))
    folds = draw_folds(calib, Preservation((*own, *others), tuple(copies)), seed=3)
    for part, kept in zip(folds.pairs, folds.preserved, strict=True):
        captions = {pair.safe_text for pair in part.pairs}
        contents = {pair.safe_image.read_bytes() for pair in part.pairs}
        assert all(text.lower() in captions for text in kept.captions if "DOG" in text)
        assert all(path.read_bytes() in contents for path in kept.images)
        assert 8 < sum("tree" in text for text in kept.captions) < 35
    assert Counter(text for kept in folds.preserved for text in kept.captions) == Counter((*own, *others))
    assert sorted(path for kept in folds.preserved for path in kept.images) == sorted(copies)


# ---------------------------------------------------------------- the statistics


@pytest.fixture(scope="module")
def model(tiny_hf):
    return uwm.load(tiny_hf)


@pytest.fixture(scope="module")
def calib(tmp_path_factory):
    """Pairs of three folds, one of which is smaller."""
    return telling_set(tmp_path_factory.mktemp("sets") / "telling", 23)


@pytest.fixture(scope="module")
def preserve(calib):
    return Preservation(tuple(f"a picture of dog number {n}" for n in range(9)), (calib.pairs[0].safe_image,))


@pytest.fixture(scope="module")
def folds(calib, preserve):
    return draw_folds(calib, preserve, seed=0)


@pytest.fixture(scope="module")
def profile(model, folds):
    made = Profile(model, folds, batch_size=5, workers=1)
    made.gather([(editor, make(editor, {})) for editor in map(find_editor, NAMES)])
    return made


def told(model, editor, statistics):
    """What statistics say: scores, or what is proposed from them; float64 by name."""
    chosen = make(editor, {})
    if hasattr(statistics, "scores"):
        return {name: scores.double() for name, scores in statistics.scores(model).tensors.items()}
    if editor.name == "hidden-units":
        sides = {name: statistics.reducers["inputs"].sides(name) for name in (WeightId("text", 1, "fc2"), WeightId("vision", 2, "fc2"))}  # noqa: E501  # fmt: skip
        return {(name, side): rows.double().sort(0).values for name, own in sides.items() for side, rows in enumerate(own)}  # noqa: E501  # fmt: skip
    changes = editor.edit(model, statistics, chosen).changes
    found = {}
    for name, change in changes.items():
        if isinstance(change, SetEntries):
            found[name, "at"], found[name] = change.indices.astype(float), change.values.torch().double()
        else:
            found[name] = change.left @ change.right.T
    return {name: torch.as_tensor(values) for name, values in found.items()}


@pytest.mark.parametrize("name", NAMES)
def test_statistics_without_a_fold_are_those_of_the_other_pairs(model, profile, folds, preserve, name):
    editor = find_editor(name)
    chosen = make(editor, {})
    found = profile.statistics(editor, chosen)
    assert len(found) == 1 + FOLDS
    seen = []
    for fold, statistics in zip((None, 0, 1, 2), found, strict=True):
        others = [folds.pairs[number] for number in range(FOLDS) if number != fold]  # joint ones: batches as here
        pairs = replace(folds.pairs[0], pairs=tuple(pair for part in others for pair in part.pairs))
        kept = [folds.preserved[number] for number in range(FOLDS) if number != fold]
        plain = editor.statistics(model, about(pairs), chosen)
        whole = Preservation(*(sum((getattr(k, part) for k in kept), ()) for part in ("captions", "images")))
        gather(
            model,
            plain,
            pairs,
            batch_size=5 if plain.joint else 7,
            workers=1,
            preserve=whole if plain.preserve else None,
        )
        assert statistics.pairs == plain.pairs
        expected, own = told(model, editor, plain), told(model, editor, statistics)
        assert own.keys() == expected.keys()
        for key, values in expected.items():
            scale = float(values.abs().max())
            torch.testing.assert_close(own[key], values, rtol=2e-3, atol=2e-4 * scale, msg=f"{fold} {key}")
        seen.append(torch.cat([values.flatten() for values in own.values()]))
    assert all(not torch.allclose(seen[0], other, rtol=1e-2) for other in seen[1:] if len(other) == len(seen[0]))


def test_each_pair_goes_through_the_model_once_whatever_the_number_of_folds(model, calib, folds, monkeypatch):
    counts = Counter()
    for tower, name in (("text", "encode_text"), ("vision", "encode_image")):
        encode = getattr(model, name)

        def counted(inputs, *more, tower=tower, encode=encode):
            counts[tower] += len(inputs)
            return encode(inputs, *more)

        monkeypatch.setattr(model, name, counted)
    both = [(editor, make(editor, {})) for editor in map(find_editor, ("repel", "redirect", "uwm", "hidden-units"))]
    for parts in (folds, draw_folds(calib, None, 0, count=5)):
        counts.clear()
        profile = Profile(model, parts, batch_size=4, workers=1)
        profile.gather(both)
        kept = sum(len(part.captions) for part in parts.preserved), sum(len(part.images) for part in parts.preserved)
        assert (counts["text"], counts["vision"]) == (2 * len(calib) + kept[0], 2 * len(calib) + kept[1])
        for editor, chosen in both:
            assert len(profile.statistics(editor, chosen)) == 1 + len(parts)
        assert counts["text"] == 2 * len(calib) + kept[0]  # statistics that are there are not made anew


def test_progress_is_told_of_every_fold(model, folds):
    told = []
    profile = Profile(
        model, folds, batch_size=4, workers=1, progress=lambda batches, n, name: told.append((n, name)) or batches
    )
    editor = find_editor("redirect")
    profile.statistics(editor, make(editor, {}))
    assert [name for _, name in told] == [f"profile, part {n} of 3" for n in (1, 2, 3)]
    assert [n for n, _ in told] == [-(-len(part) // 4) for part in folds.pairs]


def test_an_editor_that_lacks_something_is_refused_before_the_pass(model, folds, monkeypatch):
    monkeypatch.setattr(model, "encode_text", None)
    texts = [replace(part, pairs=tuple(replace(p, safe_image=None) for p in part.pairs)) for part in folds.pairs]
    editor = find_editor("repel")
    with pytest.raises(BadInput, match="the set has no vision side"):
        Profile(model, replace(folds, pairs=tuple(texts)), batch_size=4, workers=1).check(editor, make(editor, {}))
