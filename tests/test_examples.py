"""Every example runs as its first lines say, offline."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from uwm.evaluation import differences
from uwm.expressions import parse_requirements
from uwm.recipe import Recipe, run
from uwm.shipped_files import DEMO_SET

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SAYS = {
    "01_edit": "GS ",
    "02_thresholds": "reverted against original: 0 tensors differ",
    "03_own_tensors": "vision.5.fc2 (192, 768) mean score",
    "04_clip_benchmark": "both programs agree",
    "05_compare": "uwm τ 0.1 P_vu",
}
NEEDS = {"04_clip_benchmark": "clip_benchmark"}  # other programs that an example runs, where they are installed


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example(path, tmp_path):
    if find_spec(NEEDS.get(path.stem, "uwm")) is None:
        pytest.skip(f"{NEEDS[path.stem]} is not installed")
    command = [sys.executable, str(path), *([str(tmp_path)] if "sys.argv" in path.read_text() else [])]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert SAYS[path.stem] in done.stdout


def template() -> list[str]:
    """The requirements of the workflow, as they stand in it."""
    workflow = yaml.safe_load((ROOT / "examples" / "ci_gate.yml").read_text())
    steps = " ".join(step.get("run", "") for step in workflow["jobs"]["gate"]["steps"])
    return re.findall(r"--require '([^']+)'", steps)


@pytest.fixture(scope="module")
def candidates():
    """The demo model unedited, edited as the workflow edits it, and edited at random; on 80 pairs."""
    recipe = Recipe(
        model="demo",
        calib=str(DEMO_SET),
        split="calib",
        eval_splits=("test",),
        method="repel",
        limit=80,
        zero_shot=(str(DEMO_SET / "zero_shot" / "seen"),),
    )
    return run(recipe).results["test"]


def failed(candidates, column):
    """The requirements of the workflow that a candidate fails."""
    asked = [one for text in template() for one in parse_requirements(text, True)]
    result, before = candidates[column], candidates["before"]
    changes = differences(result, before)
    return [one.text for one in asked if not one.check(result, before, changes).met]


def test_the_gate_for_ci_fails_what_is_not_safer(candidates):
    """The unedited model, and a random edit of the kind and size of the edit; the edit passes."""
    assert len(template()) == 4
    assert failed(candidates, "before") == ["PU.low>+5pt", "unsafe_top1.high<-10pt"]
    assert {"PU.low>+5pt", "unsafe_top1.high<-10pt"} <= {*failed(candidates, "random")}
    assert failed(candidates, "repel") == []


def test_the_gate_for_ci_runs_as_it_stands(tmp_path):
    """Every command of the workflow but the installation, in order, in a checkout, on a few pairs."""
    workflow = yaml.safe_load((ROOT / "examples" / "ci_gate.yml").read_text())
    job = workflow["jobs"]["gate"]
    (tmp_path / "calibration").symlink_to(ROOT / "calibration")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "uwm"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m uwm "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, **job["env"], "HF_HUB_OFFLINE": "1", "UWM_LIMIT": "40", "UWM_QUIET": "1"}
    environment |= {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
    }
    steps = [step["run"] for step in job["steps"] if "run" in step]
    assert steps[0] == "pip install ."
    for step in steps[1:]:
        done = subprocess.run(
            ["bash", "-e", "-c", step], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
        )
        assert done.returncode == 0 or "--require" in step, done.stderr
    assert (done.returncode, "not met" in done.stderr) in {(0, False), (5, True)}, done.stderr
    cases = ET.parse(tmp_path / "gate.xml").getroot()[0]
    failures = {case.get("name"): case.find("failure") is not None for case in cases.iter("testcase")}
    assert sorted(failures) == sorted(one.text for text in template() for one in parse_requirements(text, True))
    failed = sum(failures.values())
    assert done.stderr.count("::error title=uwm eval::") == (failed and failed + 1)
    assert (tmp_path / "summary.md").read_text("utf-8").count("| not met |") == failed


READERS = (ROOT / "examples" / "guides" / "readers.md").read_text("utf-8").split("```")[1]


@pytest.mark.parametrize("reader", ["--caption", "--generate"])
def test_the_guide_s_commands_on_readers_run_as_they_stand(reader, tmp_path):
    """On a few pairs and prompts."""
    if reader == "--generate" and find_spec("diffusers") is None:
        pytest.skip("diffusers is not installed")
    blocks = [block for block in READERS.strip().split("\n\n") if reader in block]
    for name in ("calibration", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "UWM_LIMIT": "24", "UWM_QUIET": "1"}
    script = f'uwm() {{ "{sys.executable}" -m uwm "$@"; }}\n' + "\n".join(blocks)
    done = subprocess.run(
        ["bash", "-e", "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    figure = {"--caption": "unsafe named (lower)", "--generate": "unsafe drawn (lower)"}[reader]
    assert figure in done.stdout


@pytest.mark.parametrize(("name", "count"), [("budgets", 3 * 5 + 5), ("readers", 3 * 11)])
def test_a_page_has_the_tables_of_its_results(name, count):
    folder = ROOT / "examples" / name
    command = [sys.executable, str(folder / f"{name}.py"), str(folder / f"{name}.json"), "--table"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert done.stdout == (folder / f"{name}.md").read_text("utf-8")
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == count
    page = (folder / "README.md").read_text("utf-8")
    assert [row for row in rows if row not in page] == []
