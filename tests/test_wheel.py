"""The wheel: what it holds, how large it is, and that the demo runs from it, away from any checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from terminal import refused

from uwm.models.references import resolve
from uwm.shipped_files import DEMO_MODEL, DEMO_SET

ROOT = Path(__file__).parents[1]
# Of these the demo model is 8.9 and what the demo reads of the set is 7.7: neither can be compressed without loss.
LARGEST = 20.5e6  # bytes


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """As `pip wheel . --no-deps` makes it, from a copy, because a build leaves files beside what it builds."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for name in ("uwm", "calibration"):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "-w", str(folder), str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory) -> Path:
    """The wheel as an installer lays it out."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(unpacked: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Python with the unpacked wheel before everything else, in another folder."""
    environment = {**os.environ, "PYTHONPATH": str(unpacked), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_it_is_small_and_holds_the_demo_and_no_more(wheel):
    assert wheel.stat().st_size < LARGEST
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name.removeprefix("uwm/shipped/") for name in archive.namelist() if name.startswith("uwm/shipped/")}
    here = {
        f"{folder.name}/{path.relative_to(folder)}"
        for folder in (DEMO_MODEL, DEMO_SET)
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert shipped == here | {"README.md"}


def test_the_model_and_every_split_are_read_from_it(unpacked, tmp_path):
    code = """
import uwm
from uwm.shipped_files import DEMO_SET
print(uwm.__file__, len(uwm.load("demo").weights), len(uwm.read_calibration(DEMO_SET)))
"""
    done = run(unpacked, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    place, weights, pairs = done.stdout.split()
    assert (place, pairs) == (str(unpacked / "uwm" / "__init__.py"), "1600")
    assert int(weights) > 0


@pytest.mark.slow
def test_the_demo_runs_from_it(unpacked, tmp_path):
    done = run(unpacked, tmp_path, "-m", "uwm", "demo")
    assert done.returncode == 0, done.stderr
    assert "VERDICT  Safer in part; it costs accuracy. (test, 400 pairs)" in done.stdout
    assert (tmp_path / "uwm-demo" / "report.html").is_file()


@pytest.mark.parametrize("name", ["calibration/demo-captioner", "demo-generator"])
def test_what_only_a_checkout_has_is_told_so_and_not_asked_of_the_hub(name, run_uwm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flag, *flags = ("--caption", "--images", DEMO_SET)
    if "generator" in name:
        flag, *flags = ("--generate", "--prompts", DEMO_SET, "--detector", "q16:clip=demo", "-o", tmp_path / "out")
    words = (f"{name}: no such folder; it comes with a checkout of uwm, in calibration/", "or give the folder's path")
    refused(run_uwm("eval", "demo", flag, name, *flags), 2, *words)


def test_a_folder_of_that_name_is_read(tmp_path, monkeypatch):
    (tmp_path / "demo-captioner").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("demo-captioner") == Path("demo-captioner")
