"""Where references lead, with a Hub cache built by hand and no network."""

from __future__ import annotations

import shutil

import pytest

import uwm
from uwm.errors import BadInput
from uwm.models.references import hub_name, resolve
from uwm.shipped_files import DEMO_MODEL

COMMITS = {"main": "a" * 40, "v2": "b" * 40}


@pytest.fixture
def cache(tiny_hf, tmp_path):
    """A cache folder as huggingface_hub lays it out, with the repository acme/clip at two revisions."""
    repository = tmp_path / "models--acme--clip"
    for name, commit in COMMITS.items():
        shutil.copytree(tiny_hf, repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(commit)
    return str(tmp_path)


def test_paths_and_the_demo(tiny_hf):
    assert resolve("demo") == DEMO_MODEL
    assert resolve(str(tiny_hf)) == tiny_hf
    with pytest.raises(
        BadInput, match="no such file or folder; expected one, or ORG/NAME, hf-hub:ORG/NAME, open_clip:"
    ):
        resolve("no/such/model")


@pytest.mark.parametrize(
    ("reference", "revision", "commit"),
    [
        ("acme/clip", None, "main"),
        ("hf-hub:acme/clip", None, "main"),
        ("acme/clip@v2", None, "v2"),
        ("acme/clip", "v2", "v2"),
        (f"hf-hub:acme/clip@{'b' * 40}", "main", "v2"),
    ],
)
def test_a_cached_repository_opens_without_network(cache, reference, revision, commit):
    assert hub_name(reference) == "acme/clip"
    found = resolve(reference, revision=revision, cache_dir=cache, offline=True)
    assert found.name == COMMITS[commit]
    assert uwm.load(reference, revision=revision, cache_dir=cache, offline=True).weights


def test_what_is_not_cached_is_said(cache):
    for reference in ("acme/other", "acme/clip@v9"):
        with pytest.raises(BadInput, match=r"not in the Hub's cache \(offline\)"):
            resolve(reference, cache_dir=cache, offline=True)


def test_an_existing_path_wins_over_a_repository(tiny_hf, tmp_path, monkeypatch):
    shutil.copytree(tiny_hf, tmp_path / "acme" / "clip")
    monkeypatch.chdir(tmp_path)
    assert hub_name("acme/clip") is None
    assert str(resolve("acme/clip")) == "acme/clip"


def test_the_commands_take_the_flags(cache, tiny_set, tmp_path, run_uwm):
    hub = ("--revision", "v2", "--cache-dir", cache, "--offline")
    code, out, err = run_uwm("edit", "acme/clip", *hub, "--calib", tiny_set, "-o", tmp_path / "out")
    assert code == 0, err
    assert out.startswith("DONE     acme/clip edited by uwm ")
    assert "base_model: acme/clip" in (tmp_path / "out" / "README.md").read_text()
    code, out, _ = run_uwm("inspect", "acme/clip", "--cache-dir", cache, "--offline")
    assert code == 0
    assert "hf-clip" in out
