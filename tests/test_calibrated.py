"""Evaluating on pairs that calibrated the model: counted, warned of, and no gate passes on them unless allowed."""

from __future__ import annotations

import base64
import json
import shutil

import pytest
from terminal import done, refused

import uwm
from uwm.errors import BadInput
from uwm.inputs import calibrated
from uwm.inputs.calibrated import calibrated_on, item_facts
from uwm.manifest import write_manifest

WORDS = "16 of 16 pairs share captions or images with the pairs that calibrated it (32 captions, 32 images)"


@pytest.fixture
def calib(tiny_set):
    return uwm.read_calibration(tiny_set, split="calib")


@pytest.fixture
def written(calib, tmp_path):
    """A folder whose uwm.json names what a model was calibrated on."""
    write_manifest(tmp_path, {"calibration": {"items": item_facts([i for own in calib.items() for i in own])}})
    return tmp_path


def test_equal_items_have_equal_hashes_in_any_order(calib):
    items = [item for own in calib.items() for item in own]
    facts = item_facts(items)
    assert facts == item_facts([*reversed(items), *items])
    assert (facts["count"], len(base64.b64decode(facts["hashes"]))) == (64, 64 * 6)


def test_pairs_are_counted_that_share_anything_on_whichever_side(calib, written, tiny_set):
    test = uwm.read_calibration(tiny_set, split="test")
    assert calibrated_on("model", written, test).found.pairs == 0
    first, second, *others = test.pairs
    mixed = [
        vars(first) | {"unsafe_text": f"  {calib.pairs[3].safe_text.upper()}"},
        vars(second) | {"safe_image": calib.pairs[3].unsafe_image},
    ]
    changed = [type(first)(**pair) for pair in mixed]
    found = calibrated_on("model", written, type(test)((*changed, *others), test.root))
    assert (found.found.pairs, found.found.captions, found.found.images, found.of) == (2, 1, 1, 8)
    assert found.words.startswith("2 of 8 pairs share captions or images with the pairs that calibrated it (1 captions")


def test_of_very_many_items_a_part_is_kept_and_the_counts_are_the_least(calib, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrated, "MOST", 20)
    facts = item_facts([item for own in calib.items() for item in own])
    assert (facts["count"], len(base64.b64decode(facts["hashes"]))) == (64, 20 * 6)
    write_manifest(tmp_path, {"calibration": {"items": facts}})
    found = calibrated_on("model", tmp_path, calib)
    assert found.found.captions + found.found.images == 20
    assert found.words.startswith("at least ")


def test_what_an_edited_model_learnt_before_is_kept(calib, written, tiny_set):
    test = uwm.read_calibration(tiny_set, split="test")
    again = item_facts([item for own in test.items() for item in own], written)
    assert again["count"] == 64 + len({item for own in test.items() for item in own})
    write_manifest(written, {"calibration": {"items": again}})
    assert [calibrated_on("model", written, pairs).found.pairs for pairs in (calib, test)] == [16, 8]


def test_the_other_layout_was_calibrated_as_its_folder_was(calib, written):
    (written / "hf").mkdir()
    assert calibrated_on("model", written / "hf", calib).found.pairs == 16
    (written / "other").mkdir()
    assert calibrated_on("model", written / "other", calib) is None


def test_a_gate_says_where_nobody_knows_what_calibrated_a_model(run_uwm, made, tiny_hf, tiny_set, tmp_path):
    done(run_uwm("apply", tiny_hf, made / "patch.safetensors", "-o", tmp_path / "out"))
    _, _, err = run_uwm("eval", tmp_path / "out", "--pairs", tiny_set, "--split", "test", "--require", "GS>=0")
    assert "model: its uwm.json does not say which pairs calibrated it, so no gate can tell" in err


@pytest.mark.parametrize("manifest", [None, {"format": 2}, {"calibration": {"sha256": "0"}}])
def test_nothing_is_said_where_nothing_is_known(manifest, calib, tmp_path):
    if manifest is not None:
        write_manifest(tmp_path, manifest)
    assert calibrated_on("model", tmp_path, calib) is None


def test_another_file_in_the_folder_is_not_what_was_calibrated(calib, written):
    (written / "other.safetensors").touch()
    assert calibrated_on("model", written / "other.safetensors", calib) is None


@pytest.mark.parametrize("facts", [{}, {"count": 64, "hashes": "AAAA"}, {"count": 1, "hashes": "?"}, {"hashes": 3}, []])
def test_damaged_hashes_are_refused(facts, calib, tmp_path):
    (tmp_path / "uwm.json").write_text(json.dumps({"calibration": {"items": facts}}))
    with pytest.raises(BadInput, match=r"uwm.json: calibration.items: expected count, and hashes of 6 bytes each"):
        calibrated_on("model", tmp_path, calib)


# ---------------------------------------------------------------- in the terminal


@pytest.fixture
def gate(run_uwm, made, tiny_hf, tiny_set):
    def run(*more, split="calib"):
        arguments = ("--pairs", tiny_set, "--split", split, "--baseline", tiny_hf, "--no-cache")
        return run_uwm("eval", made / "edited", *arguments, *more)

    return run


def test_an_evaluation_on_pairs_that_calibrated_the_model_is_warned_of(gate):
    code, _, err = gate()
    assert code == 0
    assert err == f"uwm: warning: model: {WORDS}, so figures may be too good; measure on pairs that share none\n"


def test_no_gate_passes_on_pairs_that_calibrated_the_model_unless_allowed(gate):
    code, out, err = gate("--require", "GS>=0", "--json")
    assert code == 5
    assert f"requirement not met: pairs apart from calibration ({WORDS}" in err
    assert [v["met"] for v in json.loads(out)["requirements"]] == [True, False]
    code, out, err = gate("--require", "GS>=0", "--allow-calibration-pairs")
    assert (code, out.partition("\n")[0]) == (0, "GATE     PASS: 1 of 1 requirements met")
    assert WORDS in err


def test_a_gate_on_other_pairs_is_not_touched(gate):
    code, out, err = gate("--require", "GS>=0", split="test")
    assert (code, err) == (0, "")
    assert "PASS: 1 of 1" in out


def test_an_edit_names_what_it_learnt_from(made, calib):
    facts = json.loads((made / "edited" / "uwm.json").read_text("utf-8"))["calibration"]["items"]
    assert facts == item_facts([item for own in calib.items() for item in own])


def test_a_damaged_uwm_json_is_told_in_one_line(run_uwm, made, tiny_set, tmp_path):
    broken = shutil.copytree(made / "edited", tmp_path / "broken")
    (broken / "uwm.json").write_text('{"calibration": {"items": {"count": 3}}}')
    refused(run_uwm("eval", broken, "--pairs", tiny_set, "--split", "test"), 2, "calibration.items")
