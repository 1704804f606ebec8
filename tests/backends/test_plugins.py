"""Backends are found by entry points of what is really installed; a broken plug-in is named with its distribution."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from uwm.backends import Backend, TrainingSettings, find_backends
from uwm.errors import BadInput

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "third_party_backend"
OURS = ("safe-clip", "safer-clip", "safer-clip-fixed", "shield-clip")
LIST = "import uwm.backends as b; print(b.__file__); [print(n, x.source) for n, x in b.find_backends().items()]"
USE = """
import torch, torch.nn.functional as F
from uwm.backends import find_backends
from uwm.evaluation import Embeddings
backend = find_backends()["captions-only"]
sides = Embeddings(*(F.normalize(torch.randn(6, 4), dim=1) for _ in range(4)))
objective = backend.objective(sides, [])
student = Embeddings(*(side[2:5] for side in vars(sides).values()))
terms = objective.terms(student, objective.rows(1)[2:5])
assert terms.keys() == backend.settings.weights.keys(), terms
print(float(terms["keep"]) < 1e-6 < float(terms["redirect"]))
"""


def install(target, *sources):
    """With pip, from copies, because a build leaves files beside what it builds; nothing is fetched."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "--target", str(target), *map(str, sources)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def python(code, target, folder):
    environment = {**os.environ, "PYTHONPATH": str(target), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder into which uwm, without its data, and the example were installed."""
    folder = tmp_path_factory.mktemp("plugins")
    uwm = folder / "uwm-source"
    shutil.copytree(ROOT / "uwm", uwm / "uwm", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, uwm)
    (uwm / "calibration").mkdir()
    example = shutil.copytree(EXAMPLE, folder / "example", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    install(folder / "target", uwm, example)
    return folder / "target"


def test_ours_and_the_example_are_found_once_installed(installed, tmp_path):
    place, *found = python(LIST, installed, tmp_path)
    assert Path(place).is_relative_to(installed)
    names = [line.split()[0] for line in found]
    assert names == sorted(names)
    assert {*OURS, "captions-only"} <= {*names}
    assert "safer-clip SafeR-CLIP (Yousaf et al., arXiv 2511.16743, AAAI 2026)" in found
    assert "captions-only uwm's example of a third-party backend" in found


def test_the_example_is_a_loss(installed, tmp_path):
    assert python(USE, installed, tmp_path) == ["True"]


def test_every_entry_of_ours_is_a_backend_of_that_name():
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg", "utf-8")
    entries = dict(line.split(" = ") for line in settings["options.entry_points"]["uwm.backends"].strip().splitlines())
    assert tuple(entries) == OURS
    for name, value in entries.items():
        module, _, attribute = value.partition(":")
        backend: Backend = getattr(importlib.import_module(module), attribute)
        assert backend.name == name
        assert isinstance(backend.settings, TrainingSettings)


# ---------------------------------------------------------------- broken plug-ins

GOOD = """
from uwm.backends import TrainingSettings
class Plain:
    name, source = "NAME", "a test"
    settings = TrainingSettings(epochs=1, train_batch=2, learning_rate=1e-3, weights={})
    def objective(self, frozen, pairs): ...
BACKEND = Plain()
"""


@pytest.fixture
def plug_in(tmp_path, monkeypatch):
    """Lays a distribution as an installer leaves it onto the path: (distribution, entry, module's text)."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(distribution, entry, text):
        module = distribution.replace("-", "_")
        monkeypatch.delitem(sys.modules, module, raising=False)
        (tmp_path / f"{module}.py").write_text(text)
        about = tmp_path / f"{module}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[uwm.backends]\n{entry} = {module}:BACKEND\n")
        importlib.invalidate_caches()

    return write


def test_a_sound_plug_in_is_found(plug_in):
    plug_in("sound-plug", "zz-sound", GOOD.replace("NAME", "zz-sound"))
    assert find_backends()["zz-sound"].source == "a test"


BROKEN = {
    "raises": ("1 / 0", r"cannot be imported: ZeroDivisionError: division by zero; repair or uninstall"),
    "needs what is not there": ("import no_such_module", "cannot be imported: ModuleNotFoundError: No module named"),
    "no Python": ("def (", "cannot be imported: SyntaxError: "),
    "no such object": ("", "cannot be imported: AttributeError: .*BACKEND"),
    "no source": (GOOD.replace("name, source =", "name, other ="), "expected an attribute 'source', a str"),
    "settings of another kind": (
        GOOD.replace("TrainingSettings(", "dict("),
        "expected an attribute 'settings', a TrainingSettings",
    ),
    "no objective": (GOOD.replace("def objective", "def other"), "expected a method 'objective'"),
    "another name": (
        GOOD.replace("NAME", "another"),
        "calls itself 'another'; its entry point must have the same name",
    ),
}


@pytest.mark.parametrize(("text", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plug_in_is_named(text, message, plug_in, request):
    distribution = f"broken-{[*BROKEN].index(request.node.callspec.id)}"
    plug_in(distribution, "zz-broken", text.replace("NAME", "zz-broken"))
    with pytest.raises(BadInput, match=rf"backend 'zz-broken' of {distribution} \(.*:BACKEND\).*{message}") as caught:
        find_backends()
    assert "\n" not in str(caught.value)


def test_two_of_one_name_name_both(plug_in):
    for distribution in ("twin-b", "twin-a"):
        plug_in(distribution, "zz-twin", GOOD.replace("NAME", "zz-twin"))
    with pytest.raises(BadInput, match="two backends are called 'zz-twin', of twin-a and twin-b; uninstall one"):
        find_backends()
