"""The house rule: a module imports only from those to its left, and heavy libraries stay in their room."""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
from pathlib import Path

import pytest
from made_up_front import write_points

PACKAGE = Path(__file__).parents[1] / "uwm"
ORDER = """
    version lazy stages clock escaping text_tables figures errors schema processes expressions plugins tracking
    outputs weights layouts checkpoint records signed unfinished manifest shipped_files models images calibration
    statistics losses editing push intervals ranks metrics knowledge cache embedding evaluation backends label_noise
    gate report inputs tuning fitting repeating recipe finetuning comparison evaluating trying readers inspection
    cli __main__
""".split()
MODEL_LIBRARIES = {"transformers", "open_clip"}


def room(path: Path) -> str:
    """The module or sub-package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Absolute dotted names that a file imports, wherever in it."""
    package = ["uwm", *path.relative_to(PACKAGE).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            found.update({module} if node.module else {f"{module}.{alias.name}" for alias in node.names})
    return found


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def test_every_file_has_its_place():
    assert {room(p) for p in FILES} == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_come_from_the_left(path):
    here = ORDER.index(room(path))
    used = {name.split(".")[1] for name in imports(path) if name.startswith("uwm.")}
    wrong = [name for name in used if name != room(path) and ORDER.index(name) >= here]
    assert not wrong, f"{path.name} imports from its right: {wrong}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_models_imports_the_model_libraries(path):
    used = {name.split(".")[0] for name in imports(path)} & MODEL_LIBRARIES
    assert not used or room(path) == "models"


def test_what_works_on_files_loads_no_torch(tiny_hf, tmp_path):
    front = tmp_path / "tuned"
    write_points(front, tiny_hf)
    code = f"""
import sys, numpy as np
from uwm import apply, diff, revert, Patch, WeightId
from uwm.checkpoint import open_checkpoint
from uwm.cli import uwm
from uwm.inspection import inspect
weight = WeightId("vision", 0, "fc2")
checkpoint = open_checkpoint({str(tiny_hf)!r})
shape = checkpoint.info(weight).shape
base = {{weight: checkpoint.fingerprint(weight)}}
Patch.scaled({{weight: np.arange(3)}}, shapes={{weight: shape}}, base=base).save("patch")
apply({str(tiny_hf)!r}, Patch.load("patch"), output="out")
revert("out", Patch.load("out"), output="back")
assert len(diff({str(tiny_hf)!r}, "out")) == 1 and not diff({str(tiny_hf)!r}, "back")
assert inspect("out")[0]["edited by uwm"] and inspect("patch")[0]["entries"] == 3
uwm(["revert", "out", "out", "-o", "again"], standalone_mode=False)
uwm(["diff", "out", "again"], standalone_mode=False)
uwm(["inspect", "out"], standalone_mode=False)
uwm(["inspect", {str(front)!r}], standalone_mode=False)
uwm(["apply", {str(tiny_hf)!r}, {str(front)!r}, "--point", "max-loss=99%", "--dry-run"], standalone_mode=False)
print({{"torch", "transformers", "open_clip", "PIL"}} & sys.modules.keys())
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "vision_model.encoder.layers.0.mlp.fc2.weight" in found.stdout
    assert found.stdout.splitlines()[-1] == "set()"


def test_no_file_and_no_function_is_too_long():
    for path in FILES:
        lines = path.read_text().splitlines()
        assert len(lines) <= 400, f"{path.name} has {len(lines)} lines"
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= 50, f"{path.name}: {node.name} has {length} lines"


def test_every_folder_of_the_package_is_installed():
    settings = configparser.ConfigParser()
    settings.read(PACKAGE.parent / "setup.cfg", "utf-8")
    listed = set(settings["options"]["packages"].split())
    there = {".".join(p.parent.relative_to(PACKAGE.parent).parts) for p in PACKAGE.rglob("__init__.py")}
    assert listed == there | {"uwm.shipped"}
