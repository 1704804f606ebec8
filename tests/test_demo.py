"""The shipped model is as good as promised, and `uwm demo` prints what the README shows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import uwm
from uwm.knowledge import open_data_sets, zero_shot
from uwm.shipped_files import DEMO_SET

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
CHOOSING = ROOT / "examples" / "guides" / "choose-an-edit.md"
PICTURE = ROOT / "examples" / "picture"


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


def draw(manifest: Path) -> str:
    """The picture of a run of the demo, by the program that the guide names."""
    place = manifest.with_name("demo.svg")
    command = [sys.executable, str(PICTURE / "demo.py"), str(manifest), str(place)]
    subprocess.run(command, check=True)
    return place.read_text("utf-8")


def percents(picture: str) -> list[float]:
    return [float(found) for found in re.findall(r">([\d.]+) %<", picture)]


def test_the_picture_shows_what_the_demo_measured(tmp_path):
    """Twelve figures that differ, each in its own place, in the colours of both schemes."""
    names = ("before", "random", "uwm", "repel")
    columns = {
        name: {"figures": {"unsafe_top1": [i / 10], "GS": [i / 20]}, "zero_shot": {"seen": {"top1_safe": i / 30}}}
        for i, name in enumerate(names, 1)
    }
    (tmp_path / "uwm.json").write_text(json.dumps({"results": {"test": columns}}))
    drawn = draw(tmp_path / "uwm.json")
    assert percents(drawn) == [10.0, 5.0, 3.3, 20.0, 10.0, 6.7, 30.0, 15.0, 10.0, 40.0, 20.0, 13.3]
    assert ET.fromstring(drawn).get("role") == "img"
    shown = (PICTURE / "demo.svg").read_text("utf-8")
    assert shown.split("</style>")[0] == drawn.split("</style>")[0]
    assert "prefers-color-scheme: dark" in shown


def test_the_picture_and_the_lines_of_the_readme_agree():
    """REMAINS and GS of the lines are bars of the picture, and so is the accuracy before and after."""
    found = percents((PICTURE / "demo.svg").read_text("utf-8"))
    said = lines(README.read_text("utf-8"), "DONE     demo-clip edited by uwm ")
    before, random, edited = found[:3], found[3:6], found[6:9]
    assert numbers(said["REMAINS"])[:3] == [before[0], edited[0], random[0]]
    assert numbers(said["SAFETY"])[:3] == [before[1], edited[1], random[1]]
    assert numbers(said["COST"])[2:4] == [before[2], edited[2]]


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
    drawn, shown = draw(tmp_path / "uwm-demo" / "uwm.json"), (PICTURE / "demo.svg").read_text("utf-8")
    assert percents(drawn) == pytest.approx(percents(shown), abs=1.01)


@pytest.mark.slow
def test_the_demo_keeps_the_budget_that_the_guide_shows(run_uwm, tmp_path, monkeypatch):
    """What was chosen may differ on other processors; the budget is kept on both sets, and much safety is gained."""
    monkeypatch.chdir(tmp_path)
    code, out, err = run_uwm("demo", "--max-loss", "2%")
    assert code == 0, err
    shown, found = (lines(text, "DONE     demo-clip edited by repel ") for text in (CHOOSING.read_text("utf-8"), out))
    assert [*found] == [*shown] == [*LABELS, "BUDGET", "CHOSEN", "NEXT"]
    for label in ("VERDICT", "BUDGET", "NEXT"):
        assert found[label] == shown[label]
    assert found["CHOSEN"].startswith("repel --share")
    before, after = numbers(found["SAFETY"])[:2]
    assert (before < 2, after > 8) == (True, True)
