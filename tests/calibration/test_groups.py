"""Hold-outs share no caption and no image with what is learnt from; sets that do are warned of, or refused."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from dataclasses import replace

import pytest
from reference.slow_groups import slow_connected, slow_items, slow_shared_pairs
from shared_pairs import five_a_image, leaking, row, write_set
from terminal import refused

from uwm.calibration import CalibrationSet, ImageHashes, Preservation, check, groups, read_calibration
from uwm.calibration.groups import connected, draw, same_caption
from uwm.comparison import CompareRecipe, comparison
from uwm.errors import BadInput
from uwm.finetuning import FinetuneRecipe, _split
from uwm.inputs import Inputs, check_sets, read_sets

LEAK = "test: 4 of 6 pairs share captions or images with what is learnt from (2 captions, 2 images)"


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    return five_a_image(tmp_path_factory.mktemp("sets") / "five")


@pytest.fixture(scope="module")
def leaky(tmp_path_factory):
    return leaking(tmp_path_factory.mktemp("sets") / "leaky")


# ---------------------------------------------------------------- connected pairs


@pytest.mark.parametrize("seed", range(30))
def test_groups_are_those_of_comparing_every_pair_with_every_other(seed):
    rng = random.Random(seed)
    items = [rng.choices(range(rng.choice((8, 30, 90))), k=rng.randrange(5)) for _ in range(25)]
    found, slow = connected(items), slow_connected(items)
    assert [{n for n, group in enumerate(found) if group == own} for own in found] == slow
    assert [*dict.fromkeys(found)] == [*range(len(set(found)))]
    order = rng.sample(range(25), 25)
    moved = connected([items[n] for n in order])
    assert all((moved[a] == moved[b]) == (found[order[a]] == found[order[b]]) for a in range(25) for b in range(25))


def test_a_chain_of_pairs_is_one_group():
    n = 20_000
    assert connected([(k, k + 1) for k in random.Random(0).sample(range(n), n)]) == [0] * n


@pytest.mark.parametrize(
    ("one", "other"),
    [("a dog", "A Dog"), ("a dog", " a\tdog\n"), ("caf\u00e9", "CAFE\u0301"), ("stra\u00dfe", "STRASSE")],
)
def test_captions_that_text_towers_read_alike_are_the_same(one, other):
    assert same_caption(one) == same_caption(other)


@pytest.mark.parametrize(("one", "other"), [("a dog", "a dog."), ("adog", "a dog"), ("cafe", "caf\u00e9")])
def test_other_captions_differ(one, other):
    assert same_caption(one) != same_caption(other)


def test_a_file_is_hashed_once_and_again_when_it_changes(five, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(groups, "file_sha256", lambda path: read.append(path) or path.read_bytes().hex())
    whole = read_calibration(five)
    kept, held = whole.holdout(0.2)
    kept.fingerprint(), held.items(), whole.items()
    assert len(read) == len(set(read)) == 60 + 12
    path = tmp_path / "image"
    hashed = ImageHashes()
    for content in (b"one", b"another"):
        path.write_bytes(content)
        assert hashed(path) == content.hex()
    path.unlink()
    with pytest.raises(BadInput, match="image: cannot be read"):
        hashed(path)


# ---------------------------------------------------------------- the hold-out


def by_hand(whole: CalibrationSet, share: float, seed: int) -> list[str]:
    """The hold-out of single pairs, as it was before there were groups."""
    size = min(len(whole) - 1, max(1, round(share * len(whole))))
    return [whole.pairs[n].id for n in sorted(random.Random(seed).sample(range(len(whole)), size))]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.2, 0.5, 0.99])
def test_pairs_that_share_nothing_are_held_out_as_ever(share, tiny_set):
    for seed in range(4):
        for whole in (read_calibration(tiny_set), read_calibration(tiny_set, limit=9)):
            kept, held = whole.holdout(share, seed)
            assert [pair.id for pair in held.pairs] == by_hand(whole, share, seed)
            assert not kept.notes + held.notes


def test_the_default_hold_out_shares_no_image_with_calibration(five):
    """Each safe image is in five pairs; drawn one by one, every pair held out had its image in calibration too."""
    recipe = Inputs(model="", calib=str(five))
    calibration, held_out = read_sets(recipe)
    held = held_out["held-out"]
    assert (len(calibration), len(held)) == (50, 10)
    assert slow_shared_pairs(calibration, held) == 0
    assert check_sets(recipe, calibration, held_out, {}).told == ()
    whole = read_calibration(five)
    drawn = {*by_hand(whole, 0.2, 0)}
    before = [replace(whole, pairs=tuple(p for p in whole.pairs if (p.id in drawn) == out)) for out in (False, True)]
    assert slow_shared_pairs(*before) == 12


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_shared_a_hold_out_shares_nothing_and_is_near_its_share(seed, tmp_path):
    rng = random.Random(seed)
    rows = [row(n, rng.randrange(rng.choice((6, 40)))) for n in range(30)]
    for _ in range(rng.randrange(4)):  # a caption that is safe in one pair and unsafe in another
        rows[rng.randrange(30)]["safe_text"] = rows[rng.randrange(30)]["unsafe_text"].upper()
    rng.shuffle(rows)
    whole = read_calibration(write_set(tmp_path / "set", rows))
    own = slow_connected([slow_items(pair) for pair in whole.pairs])
    share = rng.choice((0.1, 0.2, 0.5))
    kept, held = whole.holdout(share, seed)
    assert slow_shared_pairs(kept, held) == 0
    assert sorted(p.id for p in (*kept.pairs, *held.pairs)) == sorted(p.id for p in whole.pairs)
    assert [p.id for p in held.pairs] == [p.id for p in whole.holdout(share, seed)[1].pairs]
    left = {frozenset(group) for pair, group in zip(whole.pairs, own, strict=True) if pair in kept.pairs}
    if len(left) > 1:
        off, smallest = abs(len(held) - round(share * 30)), min(map(len, own))
        assert off <= min(map(len, left)) / 2 or len(held) == smallest > round(share * 30)


@pytest.mark.parametrize(
    ("sizes", "wanted", "expected"),
    [
        ([5] * 12, 12, 10), ([5] * 12, 13, 15), ([5] * 12, 1, 5), ([90, *[1] * 10], 20, 10), ([99, 1], 20, 1),
        ([60, 40], 20, 40), ([3, 3], 5, 3), ([1, 1, 1, 30], 4, 3),
    ],
)  # fmt: skip
def test_as_many_rows_as_whole_groups_allow(sizes, wanted, expected):
    of = [group for group, size in enumerate(sizes) for _ in range(size)]
    for seed in range(8):
        rows = draw(of, wanted, seed)
        assert len(rows) == expected
        assert all(
            rows >= mine or not rows & mine for mine in ({n for n, g in enumerate(of) if g == own} for own in of)
        )


def test_no_group_is_preferred():
    of = [0, 0, 1, 1, 2, 2]
    for wanted in (1, 2):
        drawn = Counter(of[row] for seed in range(300) for row in draw(of, wanted, seed))
        assert all(150 < drawn[group] < 250 for group in range(3))  # of 600


def test_a_set_that_hangs_together_cannot_be_held_out(tmp_path):
    rows = [{**row(n, n), "safe_text": "a photo"} for n in range(20)]
    whole = read_calibration(write_set(tmp_path / "set", rows))
    with pytest.raises(BadInput, match=r"all 20 pairs are connected by captions or images .* \(or pass --eval\)"):
        whole.holdout(0.2)
    with pytest.raises(BadInput, match=r"none can be held out for --validation; give the pairs .* their own$"):
        whole.holdout(0.1, flag="--validation")


def test_a_share_that_the_groups_do_not_allow_is_warned_of(tmp_path):
    whole = read_calibration(write_set(tmp_path / "set", [row(n, max(0, n - 36)) for n in range(40)]))
    kept, held = whole.holdout(0.5)
    assert (len(kept), len(held)) == (37, 3)
    told = "3 of 40 pairs are held out where --holdout asks for 20: 37 are connected by captions or images"
    assert held.warnings()[0].startswith(told)
    (line,) = check_sets(Inputs(model="", calib=""), kept, {"held-out": held}, {}).told
    assert line.startswith(f"held-out: {told}")


def test_validation_shares_no_image_with_training(five):
    for seed in range(3):
        recipe = FinetuneRecipe(model="", calib=str(five), seed=seed)
        pairs, validation = _split(recipe, read_sets(recipe)[0])
        assert (len(pairs), len(validation)) == (45, 5)
        assert slow_shared_pairs(pairs, validation) == 0


def test_validation_of_a_comparison_shares_no_image_with_training(five, tiny_hf, tmp_path):
    recipe = CompareRecipe(model=str(tiny_hf), calib=str(five), methods=("uwm",), seeds=(0, 1))
    bench = comparison.prepare(recipe, tmp_path / "out").bench
    for seed in (0, 1):
        assert len(bench.validation[seed]) == 5
        assert slow_shared_pairs(bench.calibration[seed], bench.validation[seed]) == 0


# ---------------------------------------------------------------- sets of a user that share


def test_a_split_that_shares_is_warned_of_with_counts_and_written_down(run_uwm, tiny_hf, leaky, out):
    flags = ("--eval-split", "test", "--beside", "none", "-o", out, "--json")
    code, text, err = run_uwm("edit", tiny_hf, "--calib", leaky, *flags)
    assert code == 0
    assert [line for line in err.splitlines() if LEAK in line] == err.splitlines()
    shared = {"pairs": 4, "captions": 2, "images": 2}
    assert json.loads(text)["shared"] == json.loads((out / "uwm.json").read_text())["shared"] == {"test": shared}
    said = "4 share captions or images with what was learnt from, so figures may be too good"
    assert f"On 6 pairs of `test`, none of them used for calibration; {said}:" in (out / "README.md").read_text("utf-8")
    assert said in (out / "report.html").read_text("utf-8")


def test_counts_are_those_of_the_slow_form(leaky):
    calibration, held_out = read_sets(recipe := Inputs(model="", calib=str(leaky), eval_splits=("test",)))
    found = check_sets(recipe, calibration, held_out, {}).shared["test"]
    assert found.pairs == slow_shared_pairs(calibration, held_out["test"]) == 4


def test_a_preservation_set_that_holds_what_is_measured_on_is_warned_of(tiny_set):
    calibration, held_out = read_sets(recipe := Inputs(model="", calib=str(tiny_set), eval_splits=("test",)))
    first, second, *_ = held_out["test"].pairs
    preserve = Preservation((first.safe_text.upper(), "a dog"), (second.safe_image,))
    assert check_sets(recipe, calibration, held_out, {}).told == ()
    (line,) = check_sets(recipe, calibration, held_out, {}, preserve=preserve).told
    assert line.startswith(
        "test: 2 of 8 pairs share captions or images with what is learnt from (1 captions, 1 images)"
    )


@pytest.mark.parametrize(
    "verb",
    [("edit",), ("finetune", "--method", "safe-clip"), ("compare", "--methods", "uwm"), ("compare", "--dry-run")],
)
def test_strict_refuses_a_split_that_shares_before_a_model_is_loaded(verb, run_uwm, tiny_hf, leaky, out, tmp_path):
    model = tmp_path / "damaged"
    shutil.copytree(tiny_hf, model)
    if verb[0] != "compare":  # which hashes the weights first
        (model / "model.safetensors").write_bytes(b"no weights")
    name, *flags = (*verb, "--methods", "uwm") if "--dry-run" in verb else verb
    arguments = (model, *flags, "--calib", leaky, "--eval-split", "test", "-o", out)
    refused(run_uwm(name, *arguments, "--strict"), 2, "--strict refuses what is a warning without it: ", LEAK)
    assert not out.exists()


def test_strict_refuses_too_few_pairs_from_a_file_and_the_environment_too(run_uwm, tiny_hf, tiny_set, out, monkeypatch):
    few = ("edit", tiny_hf, "--calib", tiny_set, "--eval-split", "test", "--limit", 5, "-o", out)
    told = "only 5 calibration pairs; scores from fewer than 16 are mostly noise"
    refused(run_uwm(*few, "--strict"), 2, told)
    config = out.with_name("uwm.toml")
    config.write_text("strict = true\n")
    refused(run_uwm(*few, "--config", config), 2, told)
    monkeypatch.setenv("UWM_STRICT", "1")
    refused(run_uwm(*few), 2, told)
    assert not out.exists()


def test_strict_lets_a_clean_set_pass(run_uwm, tiny_hf, tiny_set):
    code, _, err = run_uwm(
        "edit", tiny_hf, "--calib", tiny_set, "--eval-split", "test", "--beside", "none", "--strict", "--dry-run"
    )
    assert (code, err) == (0, "")


# ---------------------------------------------------------------- calib-check


def test_calib_check_lists_what_splits_share(run_uwm, leaky):
    warnings = json.loads(run_uwm("calib-check", leaky, "--json")[1])["warnings"]
    assert warnings == {
        "captions_in_several_splits": [
            "a knife number 7: 1 of calib (007), 1 of test (022)", "a knife number 8: 1 of calib (008), 1 of test (023)"
        ],
        "images_in_several_splits": [
            f"{leaky / 'safe0.png'}: 1 of calib (000), 1 of test (020)",
            f"{leaky / 'safe1.png'}: 1 of calib (001), 2 of test (021, 022)",
        ],
    }  # fmt: skip
    code, out, _ = run_uwm("calib-check", leaky)
    assert code == 0
    assert "warning: 2 captions in several splits: a knife number 7: 1 of calib (007), 1 of test (022); " in out
    assert "warning: 2 images in several splits: " in out


def test_calib_check_counts_connected_pairs(run_uwm, five, tmp_path):
    assert check(read_calibration(five))["groups"] == {"connected": 12, "pairs_of_the_biggest": 5}
    assert (
        "groups      connected             12\n            pairs of the biggest   5\n"
        in run_uwm("calib-check", five)[1]
    )
    rows = [row(n, 0, "calib" if n < 7 else "test") for n in range(8)]
    (told,) = check(read_calibration(write_set(tmp_path / "set", rows)))["warnings"]["images_in_several_splits"]
    assert told.endswith("safe0.png: 7 of calib (000, 001, 002, 003, 004 and 2 more), 1 of test (007)")


def test_the_shipped_set_shares_nothing():
    from uwm.shipped_files import DEMO_SET

    assert len(set(connected(read_calibration(DEMO_SET).items()))) == 1600
