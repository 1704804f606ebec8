"""Distributions with plug-ins: installed by pip into a folder, or laid there as an installer leaves them."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = tuple(ROOT / "examples" / name for name in ("third_party_backend", "third_party_editor"))
# entry point group -> what the modules call its object
OBJECTS = {"uwm.backends": "BACKEND", "uwm.editors": "EDITOR", "uwm.detectors": "DETECTOR", "uwm.trackers": "TRACKER"}


def install(target: Path, *sources: Path) -> None:
    """With pip, from copies, because a build leaves files beside what it builds; nothing is fetched."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "--target", str(target), *map(str, sources)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def lay(folder: Path, group: str, distribution: str, entry: str, text: str) -> None:
    """A distribution of one module with one entry point; nothing is built."""
    module = distribution.replace("-", "_")
    (folder / f"{module}.py").write_text(text)
    about = folder / f"{module}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{group}]\n{entry} = {module}:{OBJECTS[group]}\n")


def entries(group: str) -> dict[str, str]:
    """Name -> object of our own entry points, as setup.cfg has them."""
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg", "utf-8")
    return dict(line.split(" = ") for line in settings["options.entry_points"][group].strip().splitlines())


def python(folder: Path, path: Path | str, *arguments: object) -> tuple[int, str, str]:
    """Run Python in a process of its own, in a folder, with a path before all others: exit code, stdout, stderr."""
    environment = {**os.environ, "PYTHONPATH": str(path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, env=environment, cwd=folder, check=False
    )
    return done.returncode, done.stdout, done.stderr


def lines(result: tuple[int, str, str]) -> list[str]:
    """stdout of a run that went well."""
    code, out, err = result
    assert code == 0, err
    return out.splitlines()


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """A folder into which uwm, without its data, and the examples of plug-ins were installed."""
    folder = tmp_path_factory.mktemp("plugins")
    uwm = folder / "uwm-source"
    shutil.copytree(ROOT / "uwm", uwm / "uwm", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, uwm)
    (uwm / "calibration").mkdir()
    ignore = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    examples = [shutil.copytree(example, folder / example.name, ignore=ignore) for example in EXAMPLES]
    install(folder / "target", uwm, *examples)
    return folder / "target"


@pytest.fixture
def plug_in(tmp_path, monkeypatch):
    """Lays a distribution onto the path of this process: (group, distribution, entry, module's text)."""
    folder = tmp_path / "distributions"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))

    def write(group: str, distribution: str, entry: str, text: str) -> Path:
        monkeypatch.delitem(sys.modules, distribution.replace("-", "_"), raising=False)
        lay(folder, group, distribution, entry, text)
        importlib.invalidate_caches()
        return folder

    return write
