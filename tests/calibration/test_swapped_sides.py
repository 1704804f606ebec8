"""A set whose sides are swapped as a whole is told by captions that name the pair's concept."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest
from terminal import refused

import uwm
from uwm.calibration import CalibrationPair, CalibrationSet, check
from uwm.calibration.sides import LEAST_NAMED, named_by_the_safe_side, swapped
from uwm.shipped_files import DEMO_SET


def turned(pairs):
    return [replace(p, safe_text=p.unsafe_text, unsafe_text=p.safe_text) for p in pairs]


def drawn(*captions, concept="weapons", times=LEAST_NAMED):
    """A pair of captions so many times."""
    return [CalibrationPair(f"{n}", concept, *captions) for n in range(times)]


SWAPPED = drawn("a weapon on blue", "a dog on blue")


@pytest.mark.parametrize("split", ["calib", "val", "test", "test-style", "test-concepts"])
def test_f56_the_shipped_set_swapped_as_a_whole_is_told_in_every_split_and_as_it_is_in_none(split):
    pairs = uwm.read_calibration(DEMO_SET, split=split).pairs
    assert swapped(pairs) == ""
    assert re.match(r"safe and unsafe may be swapped: of (\d+) pairs .* in \1 \(first: ", swapped(turned(pairs)))


def test_f56_a_set_without_the_names_of_its_concepts_tells_nothing(tiny_set):
    pairs = uwm.read_calibration(tiny_set).pairs
    assert swapped(pairs) == swapped(turned(pairs)) == ""
    assert swapped([replace(p, concept="") for p in SWAPPED]) == ""


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        (SWAPPED, True),
        (SWAPPED[1:], False),
        (turned(SWAPPED), False),
        (SWAPPED + SWAPPED[:1] + turned(SWAPPED[:1]), True),
        (SWAPPED + turned(SWAPPED[:1]), False),
        (drawn("a weapon on blue", "a bloody weapon on blue"), False),
        (drawn("a room without weapons", "a room with a gun"), False),
        (drawn("WEAPONS on blue", "a dog"), True),
        (drawn("a weaponsmith", "a dog"), False),
        (drawn("a child plays", "a man", concept="child abuse"), False),
        (drawn("abuse of a child", "a man", concept="child abuse"), True),
        (drawn("gas on blue", "a dog", concept="gas"), True),
        (drawn("ga on blue", "a dog", concept="gas"), False),
        (SWAPPED + drawn("a weapon", "a bloody weapon", times=3), True),
        (drawn("a dog", "no dog", concept=""), False),
        ([replace(p, unsafe_text_label="safe") for p in SWAPPED], False),
        (drawn(None, "a dog"), False),
        ([], False),
    ],
)
def test_f56_nearly_all_of_enough_captions_that_alone_name_the_concept_must_be_safe(pairs, told):
    assert bool(swapped(pairs)) == told


def test_f56_the_pairs_are_listed_and_counted(tmp_path):
    ids, named = named_by_the_safe_side(2 * SWAPPED + turned(SWAPPED[:1]))
    assert (ids, named) == (2 * tuple(p.id for p in SWAPPED), 2 * LEAST_NAMED + 1)
    found = check(CalibrationSet(tuple(SWAPPED), tmp_path))["warnings"]
    assert found["concepts_named_by_the_safe_caption_alone"] == [p.id for p in SWAPPED]


@pytest.fixture
def swapped_set(tiny_set, tmp_path):
    folder = shutil.copytree(tiny_set, tmp_path / "set")
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    for row in rows:
        row["safe_text"] = f"{row['concept']} and {row['safe_text']}"
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("verb", ["edit", "finetune --method safe-clip", "compare --methods uwm", "tune --trials 1"])
def test_f56_a_strict_job_refuses_a_swapped_set_before_the_work(verb, tiny_hf, swapped_set, out, run_uwm):
    verb, *more = verb.split()
    result = run_uwm(verb, tiny_hf, *more, "--calib", swapped_set, "--strict", "-o", out)
    refused(result, 2, "safe and unsafe may be swapped: of 1", "); exchange the sides, or leave out")


def test_f56_a_verb_that_only_reads_a_swapped_set_warns_once(tiny_hf, swapped_set, tmp_path, run_uwm):
    for arguments in (
        ("score", tiny_hf, "--calib", swapped_set, "-o", tmp_path / "s"),
        ("eval", tiny_hf, "--pairs", swapped_set, "--split", "calib"),
    ):
        code, _, err = run_uwm(*arguments)
        assert code == 0
        assert err.count("safe and unsafe may be swapped") == 1
    assert "16 concepts named by the safe caption alone" in run_uwm("calib-check", swapped_set, "--split", "calib")[1]
