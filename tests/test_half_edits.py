"""An edit of one tower of two is said first and everywhere, and CI can refuse it; checks that could not run say so."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from families import FAMILIES
from terminal import ALL_OF_CALIB, done, refused

import uwm
from uwm import recipe as recipes
from uwm.calibration.lacking import lacking
from uwm.label_noise import describe, label_noise, not_run
from uwm.models import hugging_face

FLAGS = "add --safe-images FOLDER --unsafe-images FOLDER"
WHY = f"ViSU-Text_train.json has captions only, and no folders of images were given; {FLAGS}"


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    """ViSU-Text as it comes: captions, and no images beside them."""
    file = tmp_path_factory.mktemp("visu") / "ViSU-Text_train.json"
    rows = [
        {"incremental_id": n, "safe": f"a picture of a dog number {n}", "nsfw": f"a picture of a bomb number {n}",
         "tag": ("hate", "violence")[n % 2], "coco_id": n} for n in range(24)
    ]  # fmt: skip
    file.write_text(json.dumps(rows))
    return file


@pytest.fixture
def half(run_uwm, tiny_hf, captions):
    return lambda *more: run_uwm("edit", tiny_hf, "--calib", captions, "--beside", "none", *more)


def test_half_an_edit_is_said_first_and_in_every_file(half, out):
    code, printed, told = half("-o", out)
    assert (code, printed.splitlines()[0].startswith("WARNING")) == (0, True)
    assert f"vision tower NOT edited: {WHY}" in " ".join(printed.split())
    assert (
        "nothing was measured: SafeGround needs captions and images, and both towers; the held-out pairs lack" in told
    )
    manifest = json.loads((out / "uwm.json").read_text("utf-8"))
    assert manifest["towers"] == {"edited": ["text"], "not_edited": {"vision": WHY}}
    assert f"vision tower NOT edited: {WHY}" in (out / "report.html").read_text("utf-8")
    assert "**vision tower NOT edited: ViSU-Text" in (out / "README.md").read_text("utf-8").replace("\\", "")


@pytest.mark.parametrize("asked", ["both", "vision"])
def test_ci_refuses_half_an_edit_before_a_model_is_loaded(asked, half, out, monkeypatch):
    monkeypatch.setattr(recipes, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    words = f"--require-towers {asked}: the vision tower would not be edited: {WHY}"
    refused(half("-o", out, "--require-towers", asked), 5, words)
    assert not out.exists()


def test_ci_lets_pass_what_it_asks_for(half, run_uwm, tiny_hf, tiny_set, out):
    assert half("--dry-run", "--require-towers", "text")[0] == 0
    both = ("edit", tiny_hf, "--calib", tiny_set, *ALL_OF_CALIB, "--dry-run", "--require-towers", "both")
    assert "NOT edited" not in done(run_uwm(*both))


def test_a_tower_that_the_settings_leave_out_is_said_and_refused_too(run_uwm, tiny_hf, tiny_set, out):
    arguments = (
        "edit",
        tiny_hf,
        "--calib",
        tiny_set,
        *ALL_OF_CALIB,
        "-o",
        out,
        "--method",
        "ablate",
        "--towers",
        "text",
    )
    why = "the vision tower was not edited: method and settings leave it as it is"
    refused(run_uwm(*arguments, "--require-towers", "both"), 5, f"--require-towers both: {why}")
    assert not out.exists()
    assert "vision tower NOT edited: method and settings" in " ".join(done(run_uwm(*arguments)).split())
    assert json.loads((out / "uwm.json").read_text("utf-8"))["settings"].get("require_towers") is None
    assert "vision tower NOT edited: method and settings" in (out / "report.html").read_text("utf-8"), "measured, too"


def test_a_model_of_one_tower_is_no_half_but_lacks_what_is_asked_for(run_uwm, tiny_set, tmp_path, capsys):
    FAMILIES["clip text"].make(tmp_path / "in")
    capsys.readouterr()  # a bar of transformers
    arguments = ("edit", tmp_path / "in", "--calib", tiny_set, *ALL_OF_CALIB, "--dry-run")
    code, printed, _ = run_uwm(*arguments)
    assert (code, "NOT edited" in printed) == (0, False)
    refused(run_uwm(*arguments, "--require-towers", "both"), 5, "the model has no vision side")


# ---------------------------------------------------------------- why


def test_why_no_pair_serves_a_tower(tiny_set, captions):
    whole = uwm.read_calibration(tiny_set)
    assert (lacking(whole, "text"), lacking(whole, "vision")) == ("", "")

    def without(**fields):
        return replace(whole, pairs=tuple(replace(pair, **fields) for pair in whole.pairs))

    assert lacking(without(safe_text=None), "text").startswith("none of 24 pairs of tiny-set has both captions; add ")
    assert lacking(without(safe_image=None), "vision").startswith("none of 24 pairs of tiny-set has both images; add ")
    missing = without(safe_image=None, missing=("safe_image",))
    words = f"no pair of tiny-set has both images (24 missing safe image); add their folders: {FLAGS[4:]}"
    assert lacking(missing, "vision") == words
    assert lacking(uwm.read_calibration(captions), "vision") == WHY


# ---------------------------------------------------------------- calib-check


def test_calib_check_says_which_tower_would_be_left_and_what_did_not_run(run_uwm, captions, tiny_hf):
    first, *lines = done(run_uwm("calib-check", captions)).splitlines()
    assert first == f"vision tower would NOT be edited: {WHY}"
    assert f"not run: bad, identical and shared images: {WHY}" in lines
    assert "not run: captions that are cut, and wrong labels: they need --model MODEL" in lines
    assert "nothing inconsistent found by the checks that ran" in lines
    code, printed, _ = run_uwm("calib-check", captions, "--model", tiny_hf)
    assert code == 0
    assert printed.splitlines()[0] == first
    assert f"not run: bad, identical and shared images: {WHY}" in printed
    assert "--model MODEL" not in printed
    assert (
        "  not run: whether the unsafe picture fits the safe caption as well as the unsafe one: no pair has" in printed
    )
    found = json.loads(done(run_uwm("calib-check", captions, "--json")))
    assert found["not_run"]["bad, identical and shared images"] == WHY


def test_checks_that_could_not_run_do_not_count_as_passed():
    captions = {"text": [torch.eye(4), torch.eye(4).flip(0)], "vision": []}
    found = label_noise(captions, [*"0123"], [*"abcd"]).as_dict()
    assert (found["checked"], found["judged"]) == (0, {"picture": 0, "caption": 0, "astray": 0})
    assert not_run(found).keys() == {"picture", "caption", "astray"}
    told = describe({**found, "ids": {"picture": [], "caption": [], "astray": []}, "dependence": {}, "mass": 0.1})
    assert told[0] == "label noise: not checked"
    assert sum("not run: " in line for line in told) == 3
    found = label_noise(captions, [*"0123"], [*"aaab"]).as_dict()
    assert (found["checked"], found["judged"]["astray"], not_run(found).keys()) == (3, 3, {"picture", "caption"})


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("tokenizer_config.json", "no tokenizer in this folder"),
        ("preprocessor_config.json", "no image preprocessor in this folder"),
    ],
)
def test_what_reads_the_pairs_is_checked_before_the_weights_are_loaded(
    run_uwm, tiny_hf, tiny_set, tmp_path, monkeypatch, file, words
):
    model = tmp_path / "model"
    shutil.copytree(tiny_hf, model)
    for name in ("tokenizer.json", "vocab.json", "merges.txt", file) if "tokenizer" in file else (file,):
        (model / name).unlink(missing_ok=True)
    monkeypatch.setattr(hugging_face, "fill", lambda *_, **__: pytest.fail("the weights were loaded"))
    refused(run_uwm("edit", model, "--calib", tiny_set, "-o", tmp_path / "out"), 2, words)
