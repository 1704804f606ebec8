"""`uwm eval` as a function: settings in; results, changes, verdicts and warnings out."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

import uwm
from uwm import evaluating
from uwm.errors import BadInput
from uwm.evaluating import EvalRecipe, ReportFiles, open_reports, run_evaluation


@pytest.fixture
def recipe(made, tiny_hf, tiny_set):
    """The edited model against its original on the test split."""
    return EvalRecipe(str(made / "edited"), str(tiny_set), str(tiny_hf), "test", cache=False)


def test_results_changes_and_verdicts(recipe, tiny_set):
    done = run_evaluation(replace(recipe, requirements=("GS>=0", "GS>=100.5")))
    pairs = uwm.read_calibration(tiny_set).split("test")
    assert done.results == {
        column: uwm.evaluate(uwm.load(reference), pairs)
        for column, reference in (("baseline", recipe.baseline), ("model", recipe.model))
    }
    assert done.changes.keys() == done.results["model"].figures.keys()
    assert [verdict.met for verdict in done.verdicts] == [True, False]
    assert done.warnings == ()
    assert done.as_dict().keys() == {"baseline", "model", "differences", "requirements", "verdict"}


def test_a_collapsed_tower_meets_no_requirement_and_is_warned_of_once(recipe, tiny_hf, tmp_path):
    broken = shutil.copytree(tiny_hf, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["text_projection.weight"].zero_()
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    asked = ("R1_vs_ts>=20", "R1_ts_vs>=20", "unsafe_top1_tu<=90")
    done = run_evaluation(replace(recipe, model=str(broken), requirements=asked))
    assert [verdict.met for verdict in done.verdicts] == [False] * 3
    assert done.warnings == (
        "the text tower has collapsed in model: different captions have the same embedding, so retrieval is chance",
    )


def test_without_a_baseline_nothing_is_compared(recipe):
    done = run_evaluation(replace(recipe, baseline=None, split=None))
    assert (done.changes, [*done.results]) == ({}, ["model"])
    every, learnt = done.warnings
    assert every == "measuring on all splits (calib, test); see --split"
    assert learnt.startswith("model: 16 of 24 pairs share captions or images with the pairs that calibrated it")


def test_report_files(recipe, tmp_path):
    files = ReportFiles(*(tmp_path / name for name in ("page.html", "gate.xml", "summary.md")))
    for _ in range(2):  # what is ours is replaced
        with open_reports(recipe, files) as reports:
            done = run_evaluation(recipe)
            reports.write(done, done.sections())
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", "gate.xml", "summary.md"}


def test_what_cannot_work_is_refused_before_a_model_is_loaded(recipe, tiny_set, monkeypatch):
    monkeypatch.setattr(evaluating, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    with (
        pytest.raises(BadInput, match="is an input or lies in one"),
        open_reports(recipe, ReportFiles(html=tiny_set / "page.html")),
    ):
        pytest.fail("the work began")
    with pytest.raises(BadInput, match="needs --baseline"):
        run_evaluation(replace(recipe, baseline=None, requirements=("GS>=-2%",)))
    with pytest.raises(BadInput, match="no figure 'XY'"):
        run_evaluation(replace(recipe, requirements=("XY>=3",)))
