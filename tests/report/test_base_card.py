"""The written card keeps the licence, the tags and the text of the model that was edited."""

from __future__ import annotations

import shutil

import pytest
from huggingface_hub import ModelCard
from terminal import ALL_OF_CALIB
from test_card import MANIFEST, RESULTS

from uwm.models.hub import wanted
from uwm.push import push
from uwm.report import BaseCard, model_card, read_base_card

CARD = """---
license: other
license_name: model-licence
license_link: LICENSE.md
language: [en, de]
datasets: [acme/pictures]
tags: [vision, clip]
base_model: acme/first
model-index: [{name: x, results: []}]
widget: [{src: x}]
---
# Tiny

## Limits of use

Not for surveillance.
"""


@pytest.fixture
def base(tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    return read_base_card(tmp_path)


def test_licence_languages_tags_and_base_model_are_kept(base):
    data = ModelCard(model_card(MANIFEST, RESULTS, base)).data
    assert (data.license, data.license_name, data.license_link) == ("other", "model-licence", "LICENSE.md")
    assert (data.language, data.datasets, data.base_model) == (["en", "de"], ["acme/pictures"], "acme/first")
    assert data.tags == ["uwm", "model-editing", "safety", "clip", "vision"]
    assert "widget" not in data.to_dict()


def test_the_model_that_was_edited_goes_before_its_own_base(base):
    model = MANIFEST["model"] | {"base_model": "acme/second"}
    assert ModelCard(model_card(MANIFEST | {"model": model}, RESULTS, base)).data.base_model == "acme/second"


def test_our_text_comes_first_and_the_limits_of_use_stay(base):
    card = model_card(MANIFEST, RESULTS, base)
    assert card.index("edited by uwm") < card.index("## The card of the base model") < card.index("# Tiny\n\n## Limits")
    assert card.endswith("Not for surveillance.\n")
    assert model_card(MANIFEST, RESULTS) in (model_card(MANIFEST, RESULTS, BaseCard()),)
    assert "base model" not in model_card(MANIFEST, RESULTS)


@pytest.mark.parametrize("head", ["---\nlicense: [\n---\n", "---\n- a\n---\n", ""])
def test_of_bad_metadata_the_text_stays(head, tmp_path):
    (tmp_path / "README.md").write_text(f"{head}# Tiny\n")
    found = read_base_card(tmp_path)
    assert found.text.endswith("# Tiny")
    assert found.metadata == {}
    assert bool(found.warnings) == bool(head)


def test_metadata_of_another_type_is_left_out(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: [1]\nlanguage: 3\n---\nText\n")
    assert read_base_card(tmp_path) == BaseCard(text="Text")


def test_the_written_folder_has_the_licence_and_a_card_that_can_be_pushed(run_uwm, tiny_hf, tiny_set, out, tmp_path):
    source = shutil.copytree(tiny_hf, tmp_path / "tiny")
    (source / "README.md").write_text(CARD)
    (source / "LICENSE.md").write_text("the licence")
    code, _, err = run_uwm("edit", source, "--calib", tiny_set, "-o", out, *ALL_OF_CALIB, "--beside", "none")
    assert (code, err) == (0, "")
    assert (out / "LICENSE.md").read_text() == "the licence"
    assert ModelCard((out / "README.md").read_text()).data.license_name == "model-licence"
    assert {"README.md", "LICENSE.md"} <= push(out, "acme/x", dry_run=True).files.keys()


def test_card_and_licence_of_a_repository_are_fetched():
    names = ["README.md", "LICENSE.md", "NOTICE", "config.json", "docs/README.md", "model.safetensors", "other.md"]
    assert wanted(names) == ["LICENSE.md", "NOTICE", "README.md", "config.json", "model.safetensors"]
