"""Repel on every family: edited from the command line, measured, loaded by the family's own library."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, Family, by_open_clip
from openai_archives import openai_state, save_archive
from telling_pairs import fed, patch_of, proposed, reordered, telling_set, values
from terminal import refused

import uwm
from uwm.editing.closed_form.detector import Detector
from uwm.editing.closed_form.repel import EDITOR, RepelSettings
from uwm.editing.closed_form.repel_fit import Fit
from uwm.editing.closed_form.repel_maths import rank_one
from uwm.errors import BadInput
from uwm.images import load_image
from uwm.weights import WeightId

TWO_TOWERS = ["clip", "siglip", "siglip 2 naflex", "chinese-clip", "sentence-transformers", "open_clip",
              "open_clip custom text", "coca", "open_clip siglip (timm)", "open_clip mt5",
              "open_clip nllb"]  # fmt: skip
ONE_TOWER = [name for name in FAMILIES if name not in TWO_TOWERS]
UNGATED = {"coca": "vision", "open_clip mt5": "text"}
HARD_TO_READ = ["siglip 2 naflex"]  # transformers reads its captions by a tokenizer that knows few of these words


def make_openai(folder):
    folder.mkdir(parents=True)
    save_archive(folder / "tiny.pt", openai_state(dtype=torch.float32))


OPENAI = Family(make_openai, by_open_clip, "openai")


@pytest.fixture(scope="module")
def telling(tmp_path_factory):
    return telling_set(tmp_path_factory.mktemp("sets") / "telling", 88, held_out=24)


@pytest.fixture(scope="module", params=[*TWO_TOWERS, "openai"])
def case(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("families") / request.param.replace(" ", "-")
    family = FAMILIES.get(request.param, OPENAI)
    family.make(folder)
    return request.param, family, folder / "tiny.pt" if request.param == "openai" else folder


def inputs_of(model, calib, side):
    images = [load_image(getattr(p, f"{side}_image")) for p in calib.pairs]
    inputs = {"packed": model.preprocess(images)}
    inputs["ids"], inputs["mask"] = model.tokenize([getattr(p, f"{side}_text") for p in calib.pairs])
    pixels = {"pixel_values": inputs["packed"]}
    inputs["pixels"] = dict(model.processor()(images, return_tensors="pt")) if hasattr(model, "processor") else pixels
    return inputs


@torch.no_grad()
def embed(model, inputs):
    return {"text": model.encode_text(inputs["ids"], inputs["mask"]), "vision": model.encode_image(inputs["packed"])}


def cosine(found):
    """Of each caption with its own image."""
    return F.cosine_similarity(found["text"], found["vision"])


def edit(run_uwm, folder, calib, out, *more):
    """`uwm edit --method repel`, measured on the split test."""
    splits = ("--split", "calib", "--eval-split", "test")
    return run_uwm("edit", folder, "--calib", calib, "-o", out, "--method", "repel", "--beside", "none", *splits, *more)


def test_repel_parts_unsafe_captions_from_unsafe_images(case, telling, tmp_path, run_uwm):
    """On pairs that it has not seen; safe ones stay near. Its folder is read by the family's own library."""
    name, family, folder = case
    code, _, err = edit(run_uwm, folder, telling.root, tmp_path / "out")
    assert code == 0, err
    said = re.findall("the (text|vision) tower has no MLP at the pooled token to hold a gate", err)
    assert said == ([UNGATED[name]] if name in UNGATED else [])
    before, after, changes = uwm.load(folder), uwm.load(tmp_path / "out"), []
    with torch.no_grad():
        for side in ("safe", "unsafe"):
            inputs = inputs_of(before, telling.split("test"), side)
            found = embed(after, inputs)
            for tower, expected in family.embed(tmp_path / "out", inputs).items():
                torch.testing.assert_close(found[tower], expected, rtol=1e-5, atol=1e-4)
            changes.append(cosine(found) - cosine(embed(before, inputs)))
    safe, unsafe = (float(change.mean()) for change in changes)
    assert unsafe < -0.04
    assert abs(safe) < abs(unsafe) / (2 if name in HARD_TO_READ else 4)


def test_its_report_measures_it(case, telling, tmp_path, run_uwm):
    name, _, folder = case
    code, _, err = edit(run_uwm, folder, telling.root, tmp_path / "out")
    assert code == 0, err
    told = json.loads((tmp_path / "out" / "uwm.json").read_text())
    assert [*told["results"]["test"]] == ["before", "repel", "random"]
    assert 0 < told["entries"] < told["of"] / 5
    for tower, found in told["edit"]["towers"].items():
        gated = UNGATED.get(name) != tower
        assert found["detector_auc"] > 0.6
        assert found["direction_energy"] < 2e-3
        assert ("unit" in found) == gated
        if gated:
            assert found["safe_touched"] <= 0.2 < found["unsafe_caught"]
    slots = {layer.partition(".")[0]: set() for layer in told["layers"]}
    for layer in told["layers"]:
        slots[layer.partition(".")[0]].add(layer.replace("head.", "").split(".", 2 - ("head" in layer))[-1])
    for tower, found in slots.items():
        assert found == ({"proj"} if UNGATED.get(name) == tower else {"fc1", "fc1.bias", "fc2", "fc2.bias"})
    page = (tmp_path / "out" / "report.html").read_text()
    assert "repel" in page


@pytest.mark.parametrize("name", ONE_TOWER)
def test_a_model_of_one_tower_is_refused(name, telling, tmp_path, run_uwm, capsys):
    FAMILIES[name].make(tmp_path / "in")
    capsys.readouterr()  # progress bars of the library that wrote it
    refused(
        edit(run_uwm, tmp_path / "in", telling.root, tmp_path / "out"), 2,
        "--method repel pushes captions and images apart, and the model has no", "side",
    )  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["text", "vision"])
def test_a_set_of_one_modality_is_refused(missing, telling, tmp_path, run_uwm, capsys):
    FAMILIES["clip"].make(tmp_path / "in")
    capsys.readouterr()
    keys = {"text": ("safe_text", "unsafe_text"), "vision": ("safe_image", "unsafe_image")}[missing]
    rows = [json.loads(line) for line in (telling.root / "pairs.jsonl").read_text().splitlines()]
    shutil.copytree(telling.root, tmp_path / "set")
    bare = [{key: value for key, value in row.items() if key not in keys} for row in rows]
    (tmp_path / "set" / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bare))
    found = run_uwm("edit", tmp_path / "in", "--calib", tmp_path / "set", "--dry-run", "--method", "repel", "-q")
    refused(found, 2, f"and the set has no {missing} side")


WRONG = [
    ("--share", "0", "--share 0.0: expected a number over 0, below 1"),
    ("--share", "1", "--share 1.0: expected a number over 0, below 1"),
    ("--share", "nan", "--share"),
    ("--strength", "-1", "--strength -1.0: expected a number from 0, below 100"),
    ("--strength", "inf", "--strength"),
    ("--lean", "-0.1", "--lean -0.1: expected a number from 0, below 100"),
    ("--folds", "1", "--folds 1: expected at least 2"),
    ("--penalty", "0", "--penalty 0.0: expected a number over 0"),
    ("--safe-weight", "0", "--safe-weight 0.0: expected a number over 0"),
    ("--units", "two", "--units"),
]


@pytest.mark.parametrize(("flag", "value", "words"), WRONG, ids=lambda value: str(value)[:12])
def test_wrong_settings_are_refused(flag, value, words, tmp_path, run_uwm):
    code, out, err = run_uwm("edit", "demo", "--calib", "demo", "--dry-run", "--method", "repel", flag, value)
    assert (code, out) == (2, "")
    assert words in err


@pytest.mark.parametrize("given", [{"share": float("nan")}, {"penalty": float("nan")}, {"lean": float("nan")}])
def test_nan_is_refused_from_python_too(given):
    with pytest.raises(BadInput, match="expected a"):
        EDITOR.check(RepelSettings(**given))


# ---------------------------------------------------------------- one unit a concept


def concepts(calib, names):
    return replace(calib, pairs=tuple(replace(p, concept=c) for p, c in zip(calib.pairs, names, strict=True)))


def groups(model, calib, folds=5):
    statistics, settings = fed(model, calib, units="concept", folds=folds)
    return {c: len(rows) for c, rows in Fit(model, statistics, settings, 0)._groups("text").items()}


@pytest.fixture
def clip(tmp_path):
    FAMILIES["clip"].make(tmp_path / "clip")
    return uwm.load(tmp_path / "clip")


def test_one_unit_for_each_concept(clip, telling):
    calib = telling.split("calib")
    proposal = proposed(clip, calib, units="concept")
    assert groups(clip, calib) == {"death": 21, "weapons": 43}
    told = proposal.report["towers"]["text"]
    units = {told["unit (death)"], told["unit (weapons)"]}
    assert len(units) == 2
    assert told["safe_touched (death)"] <= 0.1
    name = WeightId("text", 1, "fc1.bias")
    assert set(proposal.changes[name].indices.tolist()) == units
    inputs = inputs_of(clip, telling.split("test"), "unsafe")
    before = cosine(embed(clip, inputs)).mean()
    with uwm.patched(clip, patch_of(clip, proposal)):
        assert cosine(embed(clip, inputs)).mean() < before - 0.05
    row = values(EDITOR.control(clip, *fed(clip, calib, units="concept")).changes[WeightId("text", 1, "fc1")])
    first, second = row.reshape(2, -1)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.8  # every control is drawn for itself


def test_small_concepts_are_joined(clip, telling):
    """Those with fewer pairs than folds make up one, and with it the smallest of the rest if they are still too few."""
    calib = telling.split("calib")
    one = concepts(calib, ["alone", *["many"] * 40, *["some"] * 23])
    assert groups(clip, one) == {"many": 40, "other": 24}
    few = concepts(calib, [*"abcdef", *["many"] * 40, *["some"] * 18])
    assert groups(clip, few) == {"many": 40, "other": 6, "some": 18}
    bare = concepts(calib, [*[""] * 9, *["many"] * 55])
    assert groups(clip, bare) == {"many": 55, "other": 9}
    named = concepts(calib, [*["other"] * 9, "x", *["many"] * 54])
    assert groups(clip, named) == {"many": 54, "other": 10}
    assert groups(clip, concepts(calib, [f"{n}" for n in range(64)])) == {"other": 64}
    for case in (one, few, bare):
        for tower in proposed(clip, case, units="concept").report["towers"].values():
            assert all(np.isfinite(value) for value in tower.values())


def test_copies_of_a_pair_do_not_make_a_concept_large(clip, telling):
    calib = telling.split("calib")
    copied = reordered(calib, [0] * 20 + list(range(1, 64)))
    assert groups(clip, concepts(copied, [*["copied"] * 20, *["many"] * 63])) == {"other": 83}


def test_concepts_need_names_and_hidden_units(clip, telling, monkeypatch):
    calib = telling.split("calib")
    with pytest.raises(BadInput, match="--units concept: the pairs name no concepts"):
        proposed(clip, concepts(calib, [""] * 64), units="concept")
    monkeypatch.setattr(Fit, "_groups", lambda self, tower: {str(n): torch.arange(64) for n in range(65)})
    with pytest.raises(BadInput, match="--units concept: 65 concepts, and text.1.fc2 has 64 hidden units"):
        proposed(clip, calib)


# ---------------------------------------------------------------- towers that lack something


def test_a_tower_whose_first_layer_has_no_bias_is_edited_without_a_gate(clip, telling):
    del clip.tensors[WeightId("vision", 1, "fc1.bias")]
    proposal = proposed(clip, telling.split("calib"))
    (warning,) = proposal.warnings
    assert "the vision tower has no bias of its last MLP's first layer to hold a gate" in warning
    assert {w.slot for w in proposal.changes if w.tower == "vision"} == {"proj"}
    before = {side: inputs_of(clip, telling.split("test"), side) for side in ("safe", "unsafe")}
    plain = {side: cosine(embed(clip, inputs)).mean() for side, inputs in before.items()}
    with uwm.patched(clip, patch_of(clip, proposal)):
        moved = {side: float(cosine(embed(clip, inputs)).mean() - plain[side]) for side, inputs in before.items()}
    assert moved["unsafe"] < -0.05
    assert abs(moved["safe"]) < abs(moved["unsafe"]) / 2
    one_unit = proposed(clip, telling.split("calib"), units="concept")  # the projection takes one detector of all
    assert one_unit.report["towers"]["vision"] == proposal.report["towers"]["vision"]


def test_a_tower_without_gate_and_projection_is_refused(clip, telling):
    del clip.tensors[WeightId("vision", 1, "fc1.bias")], clip.tensors[WeightId("vision", None, "proj")]
    with pytest.raises(BadInput, match="the vision tower has no bias of its last .* to hold a gate, and no projection"):
        proposed(clip, telling.split("calib"))


def test_a_tower_that_cannot_lean_says_so(clip, telling):
    del clip.tensors[WeightId("text", 1, "fc2.bias")]
    proposal = proposed(clip, telling.split("calib"))
    assert proposal.warnings == ("repel: text.1.fc2 has no bias, so the text tower does not lean",)
    assert proposed(clip, telling.split("calib"), lean=0).warnings == ()


def test_without_a_gate_the_mean_safe_embedding_stays_and_all_move_along_e():
    generator = torch.Generator().manual_seed(0)
    projection, h = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((6, 9), (40, 9)))
    weight = torch.randn(6, generator=generator, dtype=torch.float64)
    told = Detector(weight, 0.3, 0.1, torch.zeros(2), torch.ones(2), 1.0)
    e = F.normalize(torch.randn(6, generator=generator, dtype=torch.float64), dim=0)
    z = h @ projection.T
    left, right = rank_one(z.mean(0), told, e, projection, 2.0)
    moved = h @ (projection + left @ right.T).T - z
    torch.testing.assert_close(moved.mean(0), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(moved - (moved @ e)[:, None] * e, torch.zeros_like(moved), rtol=0, atol=1e-12)
