"""`uwm edit --from uwm.json` gives the same bytes, or says why it cannot."""

from __future__ import annotations

import json
import shutil

import pytest
from terminal import refused

from uwm.fitting import Recipe
from uwm.repeating import BY_HAND, repeat
from uwm.shipped_files import DEMO_SET

FILES = ("model.safetensors", "uwm_patch.safetensors")


@pytest.fixture(scope="module")
def quick(tiny_hf, tiny_set, tmp_path_factory):
    """A folder that `uwm edit` wrote with settings that are not the defaults."""
    from uwm.recipe import run

    folder = tmp_path_factory.mktemp("repeated") / "edited"
    settings = {"mass": 0.05, "text_layers": "fc1"}
    recipe = Recipe(str(tiny_hf), str(tiny_set), limit=12, seed=3, holdout=0.25, batch_size=5, settings=settings)
    run(recipe, folder)
    return folder


def changed(quick, folder, **keys):
    """A copy of the record in which keys, such as ``settings.seed``, are others."""
    content = json.loads((quick / "uwm.json").read_text())
    for key, value in keys.items():
        place, last = content, key.split("__")
        for name in last[:-1]:
            place = place[name]
        place[last[-1]] = value
    (folder / "uwm.json").write_text(json.dumps(content))
    return folder / "uwm.json"


def test_the_same_bytes_of_weights_and_patch_and_the_same_record(run_uwm, quick, tiny_hf, tiny_set, out):
    result = run_uwm("edit", tiny_hf, "--calib", tiny_set, "--from", quick / "uwm.json", "-o", out)
    assert result[0] == 0, result[2]
    for name in FILES:
        assert (out / name).read_bytes() == (quick / name).read_bytes()
    then, now = (json.loads((folder / "uwm.json").read_text()) for folder in (quick, out))
    for one in (then, now):
        del one["run"]
    assert now == then


def test_what_lies_here_by_its_name_need_not_be_given(quick, tiny_hf, tiny_set, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match="no 'tiny-hf' lies here; say where it is with MODEL"):
        repeat(quick, {})
    shutil.copytree(tiny_hf, tmp_path / "tiny-hf")
    with pytest.raises(Exception, match="no 'tiny-set' lies here; say where it is with --calib"):
        repeat(quick, {})
    (tmp_path / "tiny-set").symlink_to(tiny_set)
    recipe, _ = repeat(quick, {})
    assert (recipe.model, recipe.calib, recipe.seed, recipe.limit) == ("tiny-hf", "tiny-set", 3, 12)


def test_the_demo_is_found_in_the_package(quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keys = {"settings__model": "demo-clip", "settings__calib": "emoji", "settings__zero_shot": ["seen", "CIFAR10"]}
    recipe, _ = repeat(changed(quick, tmp_path, **keys), {})
    assert (recipe.model, recipe.calib) == ("demo", str(DEMO_SET))
    assert recipe.zero_shot == (str(DEMO_SET / "zero_shot" / "seen"), "CIFAR10")


def test_a_model_of_the_hub_is_taken_at_its_commit(quick, tmp_path):
    keys = {"settings__model": "org/clip", "model__base_model": "org/clip", "settings__revision": "0" * 40}
    recipe, _ = repeat(changed(quick, tmp_path, **keys), {"calib": "set"})
    assert (recipe.model, recipe.revision) == ("org/clip", "0" * 40)


def test_a_search_is_not_repeated_but_what_it_chose(quick, tmp_path):
    keys = {"settings__max_loss": "2%", "settings__objective": "PU", "settings__trials": 3}
    recipe, _ = repeat(changed(quick, tmp_path, **keys), {"model": "m", "calib": "c"})
    assert (recipe.max_loss, recipe.method, recipe.settings["mass"]) == (None, "uwm", 0.05)


@pytest.mark.parametrize(
    "flags", [("--seed", "3"), ("--mass", "0.1"), ("--for", "llava"), ("--set", "mass=1"), ("--eval-split", "test")]
)
def test_a_flag_that_decides_the_edit_is_refused(flags, run_uwm, quick, tiny_hf, tiny_set, out):
    arguments = ("edit", tiny_hf, "--calib", tiny_set, "--from", quick, "-o", out, *flags)
    refused(run_uwm(*arguments), 2, "--from: repeats a run", f"{flags[0]} would change it")


def test_another_set_is_refused_before_the_model_is_loaded(run_uwm, quick, tiny_hf, tiny_set, tmp_path, monkeypatch):
    monkeypatch.setattr("uwm.recipe.load_model", lambda *_, **__: pytest.fail("loaded"))
    shutil.copytree(tiny_set, tmp_path / "tiny-set")
    pairs = tmp_path / "tiny-set" / "pairs.jsonl"
    pairs.write_text(pairs.read_text().replace("a picture of", "the picture of"))
    arguments = ("edit", tiny_hf, "--calib", tmp_path / "tiny-set", "--from", quick, "--dry-run")
    refused(run_uwm(*arguments), 2, "--from: the calibration set is not the one of uwm.json", "expected sha256")


def test_another_model_is_refused(run_uwm, made, quick, tiny_set, tmp_path):
    shutil.copytree(made / "edited", tmp_path / "m")
    (tmp_path / "m" / "uwm_patch.safetensors").unlink()
    arguments = ("edit", tmp_path / "m", "--calib", tiny_set, "--from", quick, "--dry-run")
    refused(run_uwm(*arguments), 2, "--from: the model is not the one of uwm.json", "model.safetensors")


def test_other_bytes_are_not_written_and_the_versions_are_told(run_uwm, quick, tiny_hf, tiny_set, out, tmp_path):
    keys = {"output_sha256__model.safetensors": "0" * 64, "versions__torch": "1.0"}
    file = changed(quick, tmp_path, **keys)
    arguments = ("edit", tiny_hf, "--calib", tiny_set, "--from", file, "-o", out)
    refused(run_uwm(*arguments), 1, "model.safetensors came out otherwise", "torch 1.0 there")
    assert not out.exists()


def test_a_record_without_the_settings_given_is_refused(run_uwm, quick, tmp_path):
    file = changed(quick, tmp_path, edit={})
    refused(run_uwm("edit", "--from", file, "--dry-run"), 2, "does not record an edit that can be repeated")


@pytest.mark.parametrize(
    ("key", "value"), [("seed", "x"), ("holdout", [1]), ("eval_splits", "test"), ("strict", 1), ("calib", None)]
)
def test_a_setting_of_another_type_is_refused(key, value, run_uwm, quick, tmp_path):
    file = changed(quick, tmp_path, **{f"settings__{key}": value})
    refused(run_uwm("edit", "--from", file, "--dry-run"), 2, f"settings.{key}", "expected")


def test_without_a_record_model_and_set_are_needed(run_uwm, tiny_hf, out):
    refused(run_uwm("edit", "--calib", "x", "-o", out), 2, "Missing argument 'MODEL'")
    refused(run_uwm("edit", tiny_hf, "-o", out), 2, "Missing option '--calib'")


def test_settings_by_hand_are_settings():
    from dataclasses import fields

    assert {*BY_HAND} <= {f.name for f in fields(Recipe)}
