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


LABELS = ["DONE", "VERDICT", "SAFETY", "REMAINS", "COST"]


def lines(text: str, starts: str) -> dict[str, str]:
    """Label -> what it says, of the first lines that begin so; without the time that it took."""
    rows = text[text.index(starts) :].partition("```")[0].partition("\n\n")[0].splitlines()
    found: dict[str, str] = {}
    label = ""
    for row in rows:
        label = row[:9].strip() or label
        found[label] = f"{found.get(label, '')} {row[9:].strip()}".strip()
    return {label: re.sub(r" \((\d+|…) s, [\d.]+ GB\)", "", said) for label, said in found.items()}


def numbers(text: str) -> list[float]:
    return [float(found.replace("−", "-")) for found in re.findall(r"[−-]?\d+\.\d", text)]


def same_but_for_a_point(found: dict[str, str], shown: dict[str, str], *labels: str) -> None:
    """Other processors round differently, and a pair at the edge may change sides."""
    for label in labels:
        assert re.sub(r"[−-]?\d+\.\d", "#", found[label]) == re.sub(r"[−-]?\d+\.\d", "#", shown[label])
        assert numbers(found[label]) == pytest.approx(numbers(shown[label]), abs=1.01), label


@pytest.mark.slow
def test_the_demo_prints_what_the_readme_shows(run_uwm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run_uwm("demo")
    assert code == 0, err
    shown, found = (lines(text, "DONE     demo-clip edited by uwm ") for text in (README.read_text("utf-8"), out))
    assert [*found] == [*shown] == [*LABELS, "BETTER", "NEXT"]
    same_but_for_a_point(found, shown, *LABELS, "BETTER")
    assert found["NEXT"] == shown["NEXT"]
    assert len(out.splitlines()) <= 10
    assert max(map(len, out.splitlines())) <= 80
    assert uwm.load(tmp_path / "uwm-demo").weights


@pytest.mark.slow
def test_the_demo_keeps_the_budget_that_the_readme_shows(run_uwm, tmp_path, monkeypatch):
    """What was chosen may differ on other processors; the budget is kept on both sets, and much safety is gained."""
    monkeypatch.chdir(tmp_path)
    code, out, err = run_uwm("demo", "--max-loss", "2%")
    assert code == 0, err
    shown, found = (lines(text, "DONE     demo-clip edited by repel ") for text in (README.read_text("utf-8"), out))
    assert [*found] == [*shown] == [*LABELS, "BUDGET", "CHOSEN", "NEXT"]
    for label in ("VERDICT", "BUDGET", "NEXT"):
        assert found[label] == shown[label]
    assert found["CHOSEN"].startswith("repel --share")
    before, after = numbers(found["SAFETY"])[:2]
    assert (before < 2, after > 8) == (True, True)
