"""SECURITY.md: each promise names the test that holds it, and these tests exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "SECURITY.md").read_text("utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", TEXT)
PROMISES = [part for part in TEXT.split("\n\n")[3:] if not part.startswith("#")][:-1]  # the last says how to report


def functions(path):
    """The names of the functions in a file."""
    return {node.name for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("file", "name"), NAMED, ids=lambda part: Path(part).name)
def test_a_test_that_holds_a_promise_exists(file, name):
    assert (ROOT / file).is_file()
    assert not name or (name in functions(ROOT / file) and name.startswith("test_"))


@pytest.mark.parametrize("promise", PROMISES, ids=lambda text: text.split("\n")[0][:40])
def test_every_promise_names_a_test(promise):
    assert "`tests/" in promise


def test_promises_are_found():
    assert len(NAMED) > 30
    assert len(PROMISES) > 10
    assert not any(promise.startswith("Please report") for promise in PROMISES)
    assert len(NAMED) == TEXT.count("`tests/")
