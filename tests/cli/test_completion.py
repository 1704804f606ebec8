"""What a shell offers: methods, and the words of settings."""

from __future__ import annotations

import pytest
from click.shell_completion import ShellComplete

from uwm.backends import find_backends
from uwm.cli import uwm
from uwm.editing.editors import editor_names


def offered(*words):
    """What is offered after these words for the last of them."""
    *before, typed = words
    found = ShellComplete(uwm, {}, "uwm", "_UWM_COMPLETE").get_completions(before, typed)
    return [item.value for item in found]


@pytest.mark.parametrize("verb", ["edit", "demo", "score"])
def test_methods(verb):
    assert offered(verb, "--method", "") == [*editor_names()]
    assert offered(verb, "--method", "grad") == ["grad-safe-clip", "grad-unsafe"]


def test_more_methods_after_a_comma():
    assert offered("edit", "--beside", "repel,ab") == ["repel,ablate"]


def test_words_of_settings():
    assert offered("edit", "--variant", "r") == ["ratio", "ratio-of-means"]
    assert offered("edit", "--rule", "") == ["top-mass", "top-fraction"]


def test_backends():
    assert offered("finetune", "--method", "") == [*find_backends()]


def test_verbs_and_flags():
    assert offered("tr") == ["try"]
    assert "--from" in offered("edit", "--fr")
