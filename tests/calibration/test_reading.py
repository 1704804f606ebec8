"""Every verb that takes a set takes each form, says what is missing, and finds pictures where it is told."""

from __future__ import annotations

import json
import shutil

import pytest
from terminal import done, refused

from uwm.calibration import read_calibration
from uwm.errors import BadInput


@pytest.fixture(scope="module")
def visu(tiny_set, tmp_path_factory):
    """`tiny_set` as ViSU-Text: a training file of 16 pairs and a test file of 8, COCO's numbers, generated pictures."""
    root = tmp_path_factory.mktemp("visu")
    items = {"train": [], "test": []}
    for row in map(json.loads, (tiny_set / "pairs.jsonl").read_text().splitlines()):
        split, number = ("train" if row["split"] == "calib" else "test"), int(row["id"])
        fields = {"safe": row["safe_text"], "nsfw": row["unsafe_text"], "tag": row["concept"]}
        items[split].append({"incremental_id": number, "coco_id": 1000 + number, **fields})
        for side, target in (
            ("safe", root / "coco" / "val2017" / f"{1000 + number:012d}.jpg"),
            ("unsafe", root / "unsafe" / split / f"{number}" / "0.jpg"),
        ):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tiny_set / "images" / f"{number:04d}_{side}.png", target)
    for split, rows in items.items():
        (root / f"ViSU-Text_{split}.json").write_text(json.dumps(rows))
    return root


def images(root):
    return ("--safe-images", root / "coco", "--unsafe-images", root / "unsafe")


def test_scores_do_not_depend_on_the_form(run_uwm, tiny_hf, tiny_set, visu, tmp_path):
    native, other = tmp_path / "native.safetensors", tmp_path / "visu.safetensors"
    done(run_uwm("score", tiny_hf, "--calib", tiny_set, "-o", native))
    done(run_uwm("score", tiny_hf, "--calib", visu / "ViSU-Text_train.json", *images(visu), "-o", other))
    from uwm import Scores

    first, second = Scores.load(native), Scores.load(other)
    assert all(first[weight].equal(second[weight]) for weight in first)


def test_edit(run_uwm, tiny_hf, tiny_set, visu, tmp_path):
    flags = ("--eval", visu / "ViSU-Text_test.json", *images(visu), "-o", tmp_path / "safe")
    out = done(run_uwm("edit", tiny_hf, "--calib", visu / "ViSU-Text_train.json", *flags))
    words = " ".join(out.split())
    assert "from 16 pairs of ViSU-Text_train.json: " in words
    assert "(ViSU-Text_test.json, 8 pairs)" in words
    written = (tmp_path / "safe" / "uwm.json").read_text()
    assert str(visu) not in written + (tmp_path / "safe" / "README.md").read_text()


def test_edit_of_the_folder_takes_the_training_split(run_uwm, tiny_hf, visu):
    flags = ("--eval-split", "test", *images(visu), "--dry-run", "--json")
    found = json.loads(done(run_uwm("edit", tiny_hf, "--calib", visu, *flags)))
    assert found["calibration"]["pairs"] == {"text": 16, "vision": 16}
    assert found["results"]["test"]["uwm"]["pairs"] == 8


def test_edit_of_captions_measured_on_a_native_set(run_uwm, tiny_hf, tiny_set, visu):
    flags = ("--eval", tiny_set, "--eval-split", "test", *images(visu), "--dry-run", "--json")
    found = json.loads(done(run_uwm("edit", tiny_hf, "--calib", visu / "ViSU-Text_train.json", *flags)))
    assert found["results"]["test"]["uwm"]["pairs"] == 8


def test_missing_pictures_are_shown_by_every_verb(run_uwm, tiny_hf, visu, tmp_path):
    shutil.copytree(visu, tmp_path / "visu")
    for number in (2, 5):
        shutil.rmtree(tmp_path / "visu" / "unsafe" / "train" / f"{number}")
    calib, flags = tmp_path / "visu" / "ViSU-Text_train.json", images(tmp_path / "visu")
    said = "2 of 16 pairs have captions only: missing unsafe image"
    code, out, err = run_uwm("score", tiny_hf, "--calib", calib, *flags, "-o", tmp_path / "s")
    assert (code, err) == (0, f"uwm: warning: {said}\n")
    code, out, err = run_uwm("eval", tiny_hf, "--pairs", calib, *flags)
    assert (code, err) == (0, f"uwm: warning: {said}\n")
    code, out, err = run_uwm("edit", tiny_hf, "--calib", calib, "--eval", calib.parent, "--eval-split", "test", *flags, "--dry-run", "--json")  # noqa: E501  # fmt: skip
    assert (code, err) == (0, f"uwm: warning: {said}\n")
    assert json.loads(out)["calibration"]["skipped"] == {"empty_caption": 0, "missing_unsafe_image": 2}
    assert json.loads(out)["calibration"]["pairs"] == {"text": 16, "vision": 14}
    out = done(run_uwm("calib-check", calib, *flags))
    assert "skipped     empty caption         0\n            missing unsafe image  2\n" in out
    assert "with image  14" in out


def test_missing_pictures_of_the_pairs_to_measure_on_are_shown(run_uwm, tiny_hf, visu, tmp_path):
    shutil.copytree(visu, tmp_path / "visu")
    shutil.rmtree(tmp_path / "visu" / "unsafe" / "test" / "20")
    flags = ("--eval-split", "test", *images(tmp_path / "visu"), "--dry-run", "--json")
    code, out, err = run_uwm("edit", tiny_hf, "--calib", tmp_path / "visu", *flags)
    assert (code, err) == (0, "uwm: warning: test: 1 of 8 pairs have captions only: missing unsafe image\n")
    assert json.loads(out)["results"]["test"]["uwm"]["pairs"] == 7


def test_the_output_is_never_a_folder_around_the_pictures(run_uwm, tiny_hf, visu):
    flags = ("--calib", visu / "ViSU-Text_train.json", *images(visu), "-o", visu / "coco", "--overwrite")
    refused(run_uwm("edit", tiny_hf, *flags), 2, "is the input itself or a folder around it")


def test_captions_only_edit_one_tower(run_uwm, tiny_hf, visu):
    flags = ("--vision-layers", "none", "--dry-run", "--json", "-q")
    found = json.loads(done(run_uwm("edit", tiny_hf, "--calib", visu / "ViSU-Text_train.json", *flags)))
    assert found["calibration"]["pairs"] == {"text": 13}
    assert found["results"] == {}


def test_folders_of_pictures_for_a_set_that_has_its_own(run_uwm, tiny_set, visu):
    refused(run_uwm("calib-check", tiny_set, *images(visu)), 2, "are for ViSU-Text and NSFWCaps; this is neither")


def test_the_file_of_a_native_set_is_the_set(tiny_set):
    assert read_calibration(tiny_set / "pairs.jsonl").fingerprint() == read_calibration(tiny_set).fingerprint()


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "set.parquet").write_text("x")
    with pytest.raises(BadInput, match=r"set\.parquet: expected a folder, or ViSU-Text \(\.json\) or NSFWCaps"):
        read_calibration(tmp_path / "set.parquet")
