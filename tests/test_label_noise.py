"""Doubted pairs: what each reason means, wrong labels put in on purpose, and what stays of the edit without them."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from terminal import ALL_OF_CALIB, done

import uwm
from uwm.embedding import embed
from uwm.label_noise import LabelNoise, dependence, find_label_noise, label_noise, label_noise_of
from uwm.shipped_files import DEMO_SET
from uwm.statistics.embeddings import PairEmbeddings

# ---------------------------------------------------------------- what each reason means


def unit(*rows):
    return F.normalize(torch.tensor(rows, dtype=torch.float32), dim=1)


SAFE, UNSAFE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)


def quadruple(ts, tu, vs, vu, concepts=None, n=4):
    """n − 1 sound pairs and this one."""
    rows = [unit(*[sound] * (n - 1), own) for sound, own in zip((SAFE, UNSAFE) * 2, (ts, tu, vs, vu), strict=True)]
    ids = [f"{i}" for i in range(n)]
    return label_noise({"text": rows[:2], "vision": rows[2:]}, ids, concepts or ["war"] * n)


def test_sound_pairs_are_not_doubted():
    found = quadruple(SAFE, UNSAFE, SAFE, UNSAFE)
    assert found.as_dict() == {"checked": 4, "flagged": 0, "share": 0, "picture": 0, "caption": 0, "astray": 0,
                               "judged": {"picture": 4, "caption": 4, "astray": 4}}  # fmt: skip
    assert found.named() == {"picture": [], "caption": [], "astray": []}


def test_an_unsafe_picture_that_is_safe():
    found = quadruple(SAFE, UNSAFE, SAFE, (1.0, 0.1, 0.0))
    assert found.named() == {"picture": ["3"], "caption": [], "astray": []}
    assert found.flagged.tolist() == [False, False, False, True]
    assert found.as_dict()["share"] == 1 / 4


def test_an_unsafe_caption_that_is_safe():
    assert quadruple(SAFE, (1.0, 0.1, 0.0), SAFE, UNSAFE).named() == {"picture": [], "caption": ["3"], "astray": []}


def test_an_unsafe_picture_of_something_else_is_not_what_its_caption_says():
    other = (0.2, 0.3, 1.0)
    assert quadruple(SAFE, (0.5, 1.0, 0.0), SAFE, other).named() == {"picture": [], "caption": ["3"], "astray": []}


def test_two_equal_sides_are_doubted():
    assert quadruple(SAFE, UNSAFE, SAFE, SAFE).named() == {"picture": ["3"], "caption": ["3"], "astray": []}
    assert quadruple(SAFE, SAFE, SAFE, SAFE).flagged.tolist() == [False, False, False, True]


def test_a_pair_with_its_sides_exchanged_goes_astray():
    found = quadruple(UNSAFE, SAFE, UNSAFE, SAFE, n=5)
    assert found.named() == {"picture": [], "caption": [], "astray": ["4"]}


def test_a_pair_goes_astray_within_its_own_concept_only():
    exchanged = (UNSAFE, SAFE, UNSAFE, SAFE)
    assert quadruple(*exchanged, concepts=[*["war"] * 4, "love"], n=5).named()["astray"] == []
    assert quadruple(*exchanged, concepts=["love", *["war"] * 4], n=5).named()["astray"] == ["4"]


def test_one_modality_alone():
    exchanged = [unit(SAFE, SAFE, SAFE, UNSAFE), unit(UNSAFE, UNSAFE, UNSAFE, SAFE)]
    found = label_noise({"text": exchanged, "vision": []}, [*"0123"], [""] * 4)
    assert found.named() == {"picture": [], "caption": [], "astray": ["3"]}


def test_a_set_of_which_some_pairs_lack_pictures(tiny_hf, tiny_set):
    model, calib = uwm.load(tiny_hf), uwm.read_calibration(tiny_set)
    whole = find_label_noise(model, calib)
    assert whole.ids == tuple(pair.id for pair in calib.pairs)
    mixed = replace(calib, pairs=tuple(
        replace(pair, safe_image=None, unsafe_image=None) if row % 3 == 0 else pair
        for row, pair in enumerate(calib.pairs)
    ))  # fmt: skip
    found = find_label_noise(model, mixed)
    there = torch.arange(24) % 3 != 0
    assert found.picture.equal(whole.picture & there)
    assert found.caption.equal(whole.caption & there)
    assert whole.flagged.any()


def test_the_embeddings_of_the_scoring_pass_give_the_same(tiny_hf, tiny_set):
    model, calib = uwm.load(tiny_hf), uwm.read_calibration(tiny_set)
    kept, expected = PairEmbeddings(), find_label_noise(model, calib)
    uwm.score(model, calib, also=[kept], batch_size=7)
    assert label_noise_of(kept, calib).named() == expected.named()
    assert label_noise_of(PairEmbeddings(), calib) is None


def test_an_edit_counts_doubted_pairs(run_uwm, tiny_hf, tiny_set):
    arguments = ("edit", tiny_hf, "--calib", tiny_set, "--split", "calib", *ALL_OF_CALIB, "--dry-run", "--json")
    expected = find_label_noise(uwm.load(tiny_hf), uwm.read_calibration(tiny_set, split="calib")).as_dict()
    assert json.loads(done(run_uwm(*arguments)))["label_noise"] == expected
    assert "label_noise" not in json.loads(done(run_uwm(*arguments, "--method", "grad-unsafe")))


# ---------------------------------------------------------------- wrong labels put in on purpose


@pytest.fixture(scope="module")
def emoji():
    """Embeddings of the demo's test pairs, their concepts, and safe items of other pairs to put in."""
    model = uwm.load("demo")
    test = uwm.read_calibration(DEMO_SET, split="test")
    return (
        embed(model, test),
        [p.concept for p in test.pairs],
        embed(model, uwm.read_calibration(DEMO_SET, split="val")),
    )


def mislabelled(emoji, share, *modalities, twin=False):
    """The set with a share of its unsafe items exchanged for safe ones -> what is found, the truth.

    The safe ones are other pairs', or with `twin` the pair's own, a little off.
    """
    own, concepts, other = emoji
    n = len(concepts)
    generator = torch.Generator().manual_seed(0)
    wrong = torch.randperm(n, generator=generator)[: int(share * n)]
    source = torch.randint(len(other.safe_text), (len(wrong),), generator=generator)
    sides = {"text": [own.safe_text, own.unsafe_text.clone()], "vision": [own.safe_image, own.unsafe_image.clone()]}
    for tower in modalities:
        put = {"text": other.safe_text, "vision": other.safe_image}[tower][source]
        if twin:
            near = sides[tower][0][wrong] + 0.03 * torch.randn(put.shape, generator=generator)
            put = F.normalize(near, dim=1)
        sides[tower][1][wrong] = put
    truth = torch.zeros(n, dtype=torch.bool)
    truth[wrong] = True
    return label_noise(sides, [f"{i}" for i in range(n)], concepts), truth


def precision_and_recall(flagged, truth):
    hits = (flagged & truth).sum()
    return (hits / flagged.sum()).item(), (hits / truth.sum()).item()


@pytest.mark.parametrize(("share", "precision"), [(0.05, 0.35), (0.2, 0.7), (0.4, 0.85)])
@pytest.mark.parametrize("tower", ["text", "vision"])
def test_wrong_captions_and_wrong_pictures_are_found(share, precision, tower, emoji):
    found, truth = mislabelled(emoji, share, tower)
    reached, recall = precision_and_recall(found.picture | found.caption, truth)
    assert reached >= precision
    assert recall >= 0.9
    assert precision_and_recall(found.flagged, truth)[1] >= recall


@pytest.mark.parametrize(("tower", "reason"), [("text", "caption"), ("vision", "picture")])
def test_an_unsafe_side_that_looks_like_the_safe_one_is_named(tower, reason, emoji):
    """What ShieldCLIP's authors found: unsafe only by name."""
    found, truth = mislabelled(emoji, 0.2, tower, twin=True)
    reached, recall = precision_and_recall(getattr(found, reason), truth)
    assert reached >= 0.75
    assert recall >= 0.95


@pytest.mark.parametrize(("share", "precision"), [(0.05, 0.2), (0.2, 0.5), (0.4, 0.7)])
def test_pairs_of_which_both_unsafe_items_are_wrong_are_harder(share, precision, emoji):
    """Caption and picture fit each other, so only the step from the safe side tells."""
    found, truth = mislabelled(emoji, share, "text", "vision")
    reached, recall = precision_and_recall(found.astray, truth)
    assert reached >= precision > share
    assert recall >= 0.5


def test_how_many_sound_pairs_are_doubted(emoji):
    found, _ = mislabelled(emoji, 0)
    counts = found.as_dict()
    assert int((found.picture | found.caption).sum()) <= 0.08 * 400
    assert counts["share"] <= 0.15


# ---------------------------------------------------------------- what stays of the edit


def test_dependence_is_that_of_scores_made_anew(tiny_hf, tiny_set):
    """One pass gives what three runs of `uwm.score` on the pairs that are left give."""
    model, calib = uwm.load(tiny_hf), uwm.read_calibration(tiny_set)
    rows = torch.arange(24)
    noise = LabelNoise(tuple(p.id for p in calib.pairs), rows % 6 == 1, rows == 4, rows == 9)
    found = dependence(model, calib, noise, mass=0.1, batch_size=5)

    def selected(pairs):
        chosen = replace(calib, pairs=tuple(pair for row, pair in enumerate(calib.pairs) if pairs[row]))
        return uwm.select(uwm.score(model, chosen), mass=0.1).flips

    whole = selected(torch.ones(24, dtype=torch.bool))
    left = selected(~noise.flagged)
    for tower in ("text", "vision"):
        own = [weight for weight in whole if weight.tower == tower]
        stay = sum(int(torch.isin(whole[weight], left[weight]).sum()) for weight in own)
        total = sum(len(whole[weight]) for weight in own)
        assert (found[tower]["flagged"], found[tower]["selected"]) == (6, total)
        assert found[tower]["stay"] == pytest.approx(stay / total, abs=2 / total)
        assert 0 < found[tower]["stay"] < 1
        assert 0 < found[tower]["stay_random"] < 1
    assert found != dependence(model, calib, noise, mass=0.1, seed=1)
    assert found == dependence(model, calib, noise, mass=0.1, batch_size=5)


def test_dependence_without_flagged_pairs_or_without_others(tiny_hf, tiny_set):
    model, calib = uwm.load(tiny_hf), uwm.read_calibration(tiny_set)
    none, every = torch.zeros(24, dtype=torch.bool), torch.ones(24, dtype=torch.bool)
    assert dependence(model, calib, LabelNoise(tuple("x" * 24), none, none, none), mass=0.1) == {}
    most = every.clone()
    most[3] = False
    assert dependence(model, calib, LabelNoise(tuple("x" * 24), every, most, none), mass=0.1) == {}
    assert dependence(model, calib, LabelNoise(tuple("x" * 24), most, none, none), mass=0.1).keys() == {
        "text",
        "vision",
    }


# ---------------------------------------------------------------- in the terminal


def test_calib_check_with_a_model(run_uwm, tiny_hf, tiny_set):
    arguments = ("calib-check", tiny_set, "--model", tiny_hf, "--mass", 0.1)
    found = json.loads(done(run_uwm(*arguments, "--json")))["label_noise"]
    expected = find_label_noise(uwm.load(tiny_hf), uwm.read_calibration(tiny_set))
    assert found["ids"] == expected.named()
    assert {key: found[key] for key in expected.as_dict()} == expected.as_dict()
    assert found["dependence"].keys() == {"text", "vision"}
    out = done(run_uwm(*arguments))
    share = 100 * found["share"]
    assert f"\nlabel noise: {found['flagged']} of 24 pairs doubted ({share:.1f} %)\n" in out
    reason = "where the unsafe picture fits the safe caption as well as the unsafe one"
    assert re.search(rf"^  {found['picture']} {reason}: \d{{4}}", out, re.M)
    stays = found["dependence"]["vision"]
    assert f"\n  vision: {100 * stays['stay']:.1f} % of the entries that τ 0.1 selects stay without its " in out
