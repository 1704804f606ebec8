"""`run(Recipe)`: what it calibrates and measures on, what it writes (test_interop.py: who loads it)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import FrozenInstanceError, asdict, replace

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from terminal import ALL_OF_CALIB, refused

import uwm
from uwm import recipe as recipes
from uwm.clock import peak_memory_mb
from uwm.editing.entries.editor import UWM
from uwm.errors import BadInput, InvalidResult, UwmError
from uwm.inputs import LEAST_CALIBRATION_PAIRS, calibration_pairs, describing, read_sets, reading
from uwm.recipe import Recipe, demo_recipe, run

WRITTEN = {"README.md", "report.html", "uwm.json", "uwm_patch.safetensors"}


@pytest.fixture(scope="module")
def recipe(tiny_hf, tiny_set):
    return Recipe(model=str(tiny_hf), calib=str(tiny_set), eval_splits=("test",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs") / "safe"


@pytest.fixture(scope="module")
def outcome(recipe, folder):
    return run(recipe, folder)


@pytest.fixture(scope="module")
def manifest(outcome, folder):
    return json.loads((folder / "uwm.json").read_text("utf-8"))


def ids(calibration):
    return [p.id for p in calibration.pairs]


# ---------------------------------------------------------------- which pairs


def test_calibrates_on_the_calibration_split_where_there_is_one(recipe):
    assert ids(calibration_pairs(recipe)) == [f"{i:04d}" for i in range(16)]
    assert ids(calibration_pairs(replace(recipe, split="test"))) == [f"{i:04d}" for i in range(16, 24)]
    assert len(calibration_pairs(replace(recipe, limit=5))) == 5


def test_calibrates_on_all_pairs_of_a_set_without_such_splits(recipe, tiny_set, tmp_path):
    shutil.copytree(tiny_set, tmp_path / "set")
    pairs = (tmp_path / "set" / "pairs.jsonl").read_text()
    (tmp_path / "set" / "pairs.jsonl").write_text(pairs.replace('"calib"', '"a"').replace('"test"', '"b"'))
    assert len(calibration_pairs(replace(recipe, calib=str(tmp_path / "set")))) == 24


def test_holds_out_a_share_that_calibration_never_sees(recipe):
    recipe = replace(recipe, eval_splits=(), holdout=0.25)
    calibration, held_out = read_sets(recipe)
    assert list(held_out) == ["held-out"]
    assert (len(calibration), len(held_out["held-out"])) == (12, 4)
    assert not set(calibration.pairs) & set(held_out["held-out"].pairs)
    assert sorted(ids(calibration) + ids(held_out["held-out"])) == ids(calibration_pairs(recipe))


def test_the_manifest_counts_only_pairs_that_were_not_held_out(recipe):
    calibration, held_out = read_sets(replace(recipe, eval_splits=()))
    outcome = run(replace(recipe, eval_splits=()))
    assert outcome.manifest["calibration"]["pairs"] == {"text": len(calibration), "vision": len(calibration)}
    assert outcome.manifest["calibration"]["sha256"] == calibration.fingerprint()
    assert outcome.results["held-out"]["uwm"].pairs == len(held_out["held-out"])


def test_measuring_on_calibration_pairs_is_refused(recipe):
    with pytest.raises(BadInput, match="'calib' holds pairs that calibration uses"):
        read_sets(replace(recipe, eval_splits=("test", "calib")))
    with pytest.raises(BadInput, match="tiny-set.* holds pairs that calibration uses"):
        read_sets(replace(recipe, eval_set=recipe.calib, eval_splits=()))


@pytest.mark.parametrize("spelling", ["relative", "copied"])
def test_measuring_on_calibration_pairs_is_refused_however_they_are_spelt(spelling, recipe, tiny_set, tmp_path):
    other = {"relative": os.path.relpath(tiny_set), "copied": tmp_path / "copy"}[spelling]
    shutil.copytree(tiny_set, tmp_path / "copy")
    with pytest.raises(BadInput, match="holds pairs that calibration uses"):
        read_sets(replace(recipe, eval_set=str(other), eval_splits=("calib",)))


def test_another_set_to_measure_on(recipe, tiny_set, tmp_path):
    shutil.copytree(tiny_set, tmp_path / "other")
    pairs = (tmp_path / "other" / "pairs.jsonl").read_text().splitlines()[16:20]
    (tmp_path / "other" / "pairs.jsonl").write_text("\n".join(pairs))
    _, held_out = read_sets(replace(recipe, eval_set=str(tmp_path / "other"), eval_splits=()))
    assert {name: len(pairs) for name, pairs in held_out.items()} == {"other": 4}


# ---------------------------------------------------------------- what it measures


def test_before_is_the_model_and_after_is_what_was_written(outcome, folder, tiny_hf, tiny_set):
    pairs = uwm.read_calibration(tiny_set, split="test")
    columns = outcome.results["test"]
    assert list(columns) == ["before", "uwm", "random"]
    assert columns["before"] == uwm.evaluate(uwm.load(tiny_hf), pairs)
    assert columns["uwm"] == uwm.evaluate(uwm.load(folder), pairs)
    assert columns["before"] != columns["uwm"] != columns["random"]


def test_random_negates_as_many_entries_of_the_same_weights(outcome, recipe, monkeypatch):
    seen = []
    original = recipes.patched
    monkeypatch.setattr(recipes, "patched", lambda model, patch: seen.append(patch) or original(model, patch))
    assert run(recipe).patch.counts() == outcome.patch.counts()
    after, random = seen
    assert random.counts() == after.counts()
    assert all(not torch.equal(random.flips[weight], after.flips[weight]) for weight in after.flips)
    assert all(len(set(indices.tolist())) == len(indices) for indices in random.flips.values())


def test_a_table_for_every_split(recipe):
    pairs = {name: columns["uwm"].pairs for name, columns in run(replace(recipe, split="calib", eval_splits=("test",), limit=6)).results.items()}  # noqa: E501  # fmt: skip
    assert pairs == {"test": 6}


@pytest.mark.parametrize("keep", ["text", "image"])
def test_a_set_of_one_modality_edits_one_tower(keep, recipe, tiny_set, tmp_path):
    shutil.copytree(tiny_set, tmp_path / "set")
    rows = [json.loads(line) for line in (tmp_path / "set" / "pairs.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if "_" not in k or k.endswith(keep)} for row in rows]
    (tmp_path / "set" / "pairs.jsonl").write_text("\n".join(map(json.dumps, kept)))
    outcome = run(replace(recipe, calib=str(tmp_path / "set")), tmp_path / "out")
    tower = {"text": "text", "image": "vision"}[keep]
    assert {weight.tower for weight in outcome.patch.flips} == {tower}
    assert outcome.manifest["calibration"]["pairs"] == {tower: 16}
    assert outcome.results == {}


@pytest.mark.parametrize(("limit", "warned"), [(15, True), (16, False)])
def test_f54_few_pairs_are_warned_of(limit, warned, recipe):
    warnings = run(replace(recipe, limit=limit)).warnings
    assert any("only 15 calibration pairs" in text for text in warnings) == warned


def test_skipped_pairs_are_warned_of_and_counted(recipe, tiny_set, tmp_path):
    shutil.copytree(tiny_set, tmp_path / "set")
    with (tmp_path / "set" / "pairs.jsonl").open("a") as stream:
        stream.write('{"id": "e", "safe_text": " ", "unsafe_text": "x", "split": "calib"}\n')
    outcome = run(replace(recipe, calib=str(tmp_path / "set")))
    assert outcome.warnings == ("1 pairs skipped: empty caption",)
    assert outcome.manifest["calibration"]["skipped"] == {"empty_caption": 1}


# ---------------------------------------------------------------- what it writes


def test_files(outcome, folder, tiny_hf):
    inputs = {path.name for path in tiny_hf.iterdir()}
    assert {path.name for path in folder.iterdir()} == inputs | WRITTEN
    assert [path.name for path in folder.parent.iterdir()] == ["safe"]
    for name in inputs - {"model.safetensors"}:
        assert (folder / name).read_bytes() == (tiny_hf / name).read_bytes()


def test_only_the_selected_entries_differ_and_only_in_sign(outcome, folder, tiny_hf):
    before, after = load_file(tiny_hf / "model.safetensors"), load_file(folder / "model.safetensors")
    differ = {name for name in before if not torch.equal(before[name], after[name])}
    names = {weight: uwm.load(tiny_hf).weights[weight].key for weight in outcome.patch.flips}
    assert differ == set(names.values())
    for weight, indices in outcome.patch.flips.items():
        a, b = before[names[weight]].flatten(), after[names[weight]].flatten()
        assert torch.equal((a != b).nonzero().flatten(), indices)
        assert torch.equal(b[indices], -a[indices])


def test_manifest(outcome, manifest, recipe, folder, tiny_hf, tiny_set):
    def sha256(path):
        return hashlib.sha256(path.read_bytes()).hexdigest()

    assert manifest["format"] == 2
    assert manifest["versions"]["uwm"] == uwm.__version__
    names = {"model": "tiny-hf", "calib": "tiny-set", "eval_splits": ["test"], "zero_shot": []}
    both = {"mass": {"text": 0.02, "vision": 0.02}, "rule": {"text": "top-mass", "vision": "top-mass"}, "alpha": -1}
    unsaid = (
        "settings",
        "max_loss",
        "objective",
        "trials",
        "until_stable",
        "require_towers",
        "purpose",
        "workers",
        "cache",
    )
    given = {key: value for key, value in asdict(recipe).items() if key not in unsaid} | {"beside": [], "method": "uwm"}
    assert manifest["settings"] == asdict(UWM.Settings()) | given | names | both | {"variant": "ratio"}
    assert (manifest["model"]["layout"], manifest["model"]["library"]) == ("hf-clip", "transformers")
    assert manifest["model"]["sha256"] == {"model.safetensors": sha256(tiny_hf / "model.safetensors")}
    assert manifest["output_sha256"] == {"model.safetensors": sha256(folder / "model.safetensors")}
    assert manifest["calibration"].pop("items")["count"] == 64
    assert manifest["calibration"] == {
        "name": "tiny-set",
        "pairs": {"text": 16, "vision": 16},
        "skipped": {"empty_caption": 0},
        "sha256": uwm.read_calibration(tiny_set, split="calib").fingerprint(),
    }
    assert manifest["results"] == {"test": {c: json.loads(json.dumps(r.as_dict())) for c, r in outcome.results["test"].items()}}  # noqa: E501  # fmt: skip


def test_manifest_layers_and_guards(outcome, manifest, tiny_hf):
    model = uwm.load(tiny_hf)
    assert list(manifest["layers"]) == [str(weight) for weight in outcome.patch.flips]
    assert len(manifest["layers"]) == 2 + 3
    for weight, count in outcome.patch.counts().items():
        layer = manifest["layers"][str(weight)]
        assert (layer["kind"], layer["words"], layer["rank"]) == ("scale", "negated", None)
        assert (layer["entries"], layer["of"]) == (count, model.parameter(weight).numel())
        assert 1 <= count <= 0.02 * layer["of"] + 1
        assert layer["base_sha256"] == model.fingerprint(weight)
        assert layer["notes"]["neutral"].keys() == {
            "one_token_pairs", "dead_channels", "constant_channels", "zero_columns", "zero_rows",
        }  # fmt: skip
    assert manifest["entries"] == sum(outcome.patch.counts().values())
    assert manifest["of"] == sum(layer["of"] for layer in manifest["layers"].values())


def test_manifest_times_every_stage(outcome):
    used = outcome.manifest["run"]
    assert list(used["seconds"]) == ["read", "load", "edit", "evaluate", "write"]
    assert used["peak_memory_mb"] == pytest.approx(peak_memory_mb(), rel=0.5)


@pytest.mark.usefixtures("outcome")
@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_no_local_paths_and_no_captions(name, folder, tiny_hf, tiny_set):
    content = (folder / name).read_bytes()
    for secret in (tiny_hf.parent, tiny_set.parent, folder.parent, "a picture of", "_unsafe.png"):
        assert str(secret).encode() not in content


@pytest.mark.usefixtures("outcome")
def test_model_card_metadata(folder):
    data = ModelCard.load(folder / "README.md").data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "zero-shot-image-classification")
    assert "uwm" in data.tags


def test_model_in_the_current_folder_has_a_name(recipe, tiny_hf, monkeypatch):
    monkeypatch.chdir(tiny_hf)
    manifest = run(replace(recipe, model=".")).manifest
    assert manifest["model"]["name"] == manifest["settings"]["model"] == "tiny-hf"


def test_dry_run_decides_the_same_and_writes_nothing(outcome, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dry = run(recipe)
    assert dry.results == outcome.results
    assert dry.patch.counts() == outcome.patch.counts()
    assert all(torch.equal(dry.patch.flips[weight], outcome.patch.flips[weight]) for weight in dry.patch.flips)
    only_written = {"run", "output_sha256"}
    assert dry.manifest == {k: v for k, v in outcome.manifest.items() if k not in only_written} | {"run": dry.manifest["run"]}  # noqa: E501  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_swapping_safe_and_unsafe_changes_the_selection(outcome, recipe, tiny_set, tmp_path):
    shutil.copytree(tiny_set, tmp_path / "set")
    text = (tmp_path / "set" / "pairs.jsonl").read_text()
    for old, new in (('"safe_', '"x_'), ('"unsafe_', '"safe_'), ('"x_', '"unsafe_')):
        text = text.replace(old, new)
    (tmp_path / "set" / "pairs.jsonl").write_text(text)
    swapped = run(replace(recipe, calib=str(tmp_path / "set"))).patch
    assert all(not torch.equal(swapped.flips[weight], outcome.patch.flips[weight]) for weight in swapped.flips)


def test_a_fault_while_writing_leaves_the_earlier_output_whole(recipe, tmp_path, monkeypatch):
    (tmp_path / "safe").mkdir()
    (tmp_path / "safe" / "uwm.json").write_text("x")
    monkeypatch.setattr(describing, "model_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(recipe, tmp_path / "safe", overwrite=True)
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["safe", "safe/uwm.json"]


def test_unusable_outputs_are_refused_before_the_long_work(recipe, tiny_hf, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    (tmp_path / "file").touch()
    for output, overwrite, message in (
        (tiny_hf, True, "is the input itself"),
        (tiny_hf.parent, True, "is the input itself"),
        (tmp_path, False, "pass --overwrite"),
        (tmp_path / "file", True, "is no folder"),
    ):
        with pytest.raises(BadInput, match=message):
            run(recipe, output, overwrite=overwrite)


@pytest.mark.parametrize("field", ["calib", "eval_set"])
def test_output_over_a_set_is_refused(field, recipe, tiny_set, tmp_path):
    shutil.copytree(tiny_set, tmp_path / "set")
    changed = replace(recipe, **{field: str(tmp_path / "set")})
    with pytest.raises(BadInput):
        run(changed, tmp_path / "set", overwrite=True)
    assert (tmp_path / "set" / "pairs.jsonl").exists()


def test_output_above_the_input_is_refused(recipe, tiny_hf, tmp_path):
    shutil.copytree(tiny_hf, tmp_path / "home" / "models" / "tiny")
    with pytest.raises(UwmError):
        run(replace(recipe, model=str(tmp_path / "home/models/tiny")), tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "models" / "tiny").exists()


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [("mass", 0.0, BadInput), ("text_mass", 2.0, BadInput), ("alpha", 1.0, InvalidResult), ("method", "x", BadInput)],
)
def test_settings_are_checked_before_the_long_work(field, value, error, recipe, monkeypatch):
    def load(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(reading, "load", load)
    with pytest.raises(error):
        run(replace(recipe, **({field: value} if field == "method" else {"settings": {field: value}})))


# ---------------------------------------------------------------- settings


def test_recipe_is_frozen(recipe):
    with pytest.raises(FrozenInstanceError):
        recipe.method = "repel"


def test_demo_measures_on_other_splits_than_it_calibrates_on():
    demo = demo_recipe(settings={"mass": 0.1})
    assert (demo.model, demo.split, demo.settings) == ("demo", "calib", {"mass": 0.1})
    assert demo_recipe().settings == {"mass": recipes.DEMO_MASS}
    assert "calib" not in demo.eval_splits
    calibration, held_out = read_sets(demo)
    assert len(calibration) > LEAST_CALIBRATION_PAIRS
    assert list(held_out) == list(demo.eval_splits)


def test_f45_an_edited_model_is_not_edited_again_unaware(made, tiny_set, tmp_path, run_uwm):
    flags = ("--calib", tiny_set, "-o", tmp_path / "out", *ALL_OF_CALIB)
    refused(run_uwm("edit", made / "edited", *flags), 1, "already edited by uwm", "pass --again")
    assert run_uwm("edit", made / "edited", *flags, "--again", "-q")[0] == 0
    (tmp_path / "other").mkdir()
    shutil.copytree(made / "edited", tmp_path / "other", dirs_exist_ok=True)
    uwm.revert(made / "edited", uwm.Patch.load(made / "edited"), output=tmp_path / "back")
    shutil.copy(tmp_path / "back" / "model.safetensors", tmp_path / "other")  # a stray patch beside unedited weights
    assert run_uwm("edit", tmp_path / "other", *flags, "--overwrite", "-q")[0] == 0


def test_a_patch_of_any_method_says_how_it_came_about(recipe):
    patch = run(replace(recipe, method="hidden-units", settings={"top": 0.1}, seed=3)).patch
    assert (patch.recipe["method"], patch.recipe["seed"], patch.recipe["settings"]["top"]) == ("hidden-units", 3, 0.1)
    assert patch.recipe["pairs"] == {"text": 16, "vision": 16}
