"""The wheels of uwm and of its set: what they hold, how large they are, and that the demo runs from them."""

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
LARGEST = 15e6  # bytes of each


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> dict[str, Path]:
    """As `pip wheel . ./calibration --no-deps` makes them, from a copy, because a build leaves files in its folder."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for name in ("uwm", "calibration"):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    command += ["-w", str(folder), str(source), str(source / "calibration")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {path.name.partition("-")[0]: path for path in folder.glob("*.whl")}


@pytest.fixture(scope="module")
def unpacked(wheels, tmp_path_factory) -> Path:
    """The wheels as an installer lays them out."""
    folder = tmp_path_factory.mktemp("installed")
    for wheel in wheels.values():
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    return folder


def run(unpacked: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Python with the unpacked wheel before everything else, in another folder."""
    environment = {**os.environ, "PYTHONPATH": str(unpacked), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def below(*folders: Path) -> set[str]:
    """Every file of some folders, with the folder's name."""
    return {
        f"{folder.name}/{path.relative_to(folder)}"
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(("name", "place", "folder"), [
    ("uwm", "uwm/shipped/", DEMO_MODEL), ("uwm_emoji", "uwm_emoji/", DEMO_SET),
])  # fmt: skip
def test_each_is_small_and_holds_its_part_of_the_demo_and_no_more(wheels, name, place, folder):
    assert wheels[name].stat().st_size < LARGEST
    with zipfile.ZipFile(wheels[name]) as archive:
        shipped = {found.removeprefix(place) for found in archive.namelist() if found.startswith(place)}
    assert shipped == below(folder) | {"README.md"}


def test_without_the_set_the_demo_says_what_to_install(wheels, tmp_path):
    with zipfile.ZipFile(wheels["uwm"]) as archive:
        archive.extractall(tmp_path / "installed")
    for words in (["demo", "--dry-run"], ["try"]):
        done = run(tmp_path / "installed", tmp_path, "-m", "uwm", *words, "--no-progress")
        told = "the demo's set of emoji is not installed: in a checkout of uwm, pip install ./calibration"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"uwm: error: {told}\n")


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
