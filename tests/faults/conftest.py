"""Inputs that a test may lose, and the verbs that write one file."""

from __future__ import annotations

import shutil

import pytest

from uwm import evaluating
from uwm.models import loading


@pytest.fixture
def inputs(tmp_path, tiny_hf, tiny_set, made):
    """A model, a set and scores that a test may lose."""
    folder = tmp_path / "inputs"
    shutil.copytree(tiny_hf, folder / "model")
    shutil.copytree(tiny_set, folder / "set")
    shutil.copy(made / "scores.safetensors", folder)
    return folder


@pytest.fixture
def no_model(monkeypatch):
    """What is refused is refused before a model is opened."""

    def opened(*_, **__):
        pytest.fail("a model was opened")

    monkeypatch.setattr(loading, "open_checkpoint", opened)
    monkeypatch.setattr(evaluating, "load", opened)


@pytest.fixture
def verbs(run_uwm, inputs):
    """Every verb that writes one file: how it is called -> its result for a place."""
    model, calib = inputs / "model", inputs / "set"
    before = {
        "score": ("score", model, "--calib", calib, "--overwrite", "-o"),
        "select": ("select", inputs / "scores.safetensors", "--overwrite", "-o"),
        "html": ("eval", model, "--pairs", calib, "--html"),
        "junit": ("eval", model, "--pairs", calib, "--junit"),
        "markdown": ("eval", model, "--pairs", calib, "--markdown"),
    }
    return {name: lambda place, words=words: run_uwm(*words, place) for name, words in before.items()}
