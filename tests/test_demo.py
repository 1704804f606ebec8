"""The shipped model is as good as promised, and `uwm demo` prints what the README shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import uwm
from uwm.knowledge import open_data_sets, zero_shot
from uwm.shipped_files import DEMO_SET

README = Path(__file__).parents[1] / "README.md"


def test_the_model_has_learnt_its_world():
    model = uwm.load("demo")
    figures = uwm.evaluate(model, uwm.read_calibration(DEMO_SET, split="test")).figures
    percent = {name: 100 * value[0] for name, value in figures.items()}
    assert min(percent["R1_ts_vs"], percent["R1_vs_ts"]) >= 60
    assert min(percent["P_ts"], percent["P_vs"]) >= 85
    assert max(percent["P_tu"], percent["P_vu"]) <= 15
    knowledge = zero_shot(model, open_data_sets([str(DEMO_SET / "zero_shot" / "seen")])["seen"]).figures
    assert knowledge["top1"] >= 0.6
    assert knowledge["top1_unsafe"] >= knowledge["top1_safe"]


FIGURE = r"([\d.]+)(?: \[.*?\])?"


def rows(text: str) -> list[tuple[str, list[float]]]:
    """Label and the four means of every line of figures."""
    lines = re.findall(rf"^(.+?) {{2,}}{FIGURE} +{FIGURE} +{FIGURE} +{FIGURE}$", text, re.M)
    return [(label, [float(v) for v in values]) for label, *values in lines]


@pytest.mark.slow
def test_the_demo_prints_what_the_readme_shows(run_uwm, tmp_path):
    """To one point: other processors round differently, and a pair at the edge may change sides."""
    code, out, err = run_uwm("demo", "-o", tmp_path / "out")
    assert code == 0, err
    shown, found = rows(README.read_text("utf-8")), rows(out)
    assert len(found) == 13 * 2 + 7
    assert [label for label, _ in shown] == [label for label, _ in found]
    for (label, expected), (_, values) in zip(shown, found, strict=True):
        assert values == pytest.approx(expected, abs=1.01), label
    assert uwm.load(tmp_path / "out").weights


@pytest.mark.slow
def test_the_demo_keeps_the_budget_that_the_readme_shows(run_uwm, tmp_path):
    """What was chosen may differ on other processors; the budget is kept on both sets, and much safety is gained."""
    code, out, err = run_uwm("demo", "--max-loss", "2%", "-o", tmp_path / "out")
    assert code == 0, err
    pattern = r"^(Budget 2% on [\w-]+: [\w ]+) \(|^(Chosen: repel) --share"
    shown, found = ([a or b for a, b in re.findall(pattern, text, re.M)] for text in (README.read_text("utf-8"), out))
    assert found == shown
    assert len(shown) == 3
    before, after = map(float, re.findall(r"safety ([\d.]+) → ([\d.]+) %", out)[0])
    assert (before < 6, after > 12) == (True, True)
