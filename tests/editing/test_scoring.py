"""`uwm.score`: what it takes, what it refuses, what it stores."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

import uwm
from uwm import records
from uwm.editing.entries.editor import VARIANTS
from uwm.errors import BadInput


@pytest.fixture(scope="module")
def model(tiny_hf):
    return uwm.load(tiny_hf)


@pytest.fixture(scope="module")
def scores(model, tiny_set):
    return uwm.score(model, uwm.read_calibration(tiny_set))


def test_the_default_layers_are_the_paper_s(scores):
    assert [str(w) for w in scores] == ["text.0.out_proj", "text.1.out_proj", "vision.0.fc2", "vision.1.fc2", "vision.2.fc2"]  # noqa: E501  # fmt: skip
    assert scores[uwm.WeightId("vision", 1, "fc2")].shape == (32, 64)
    assert scores.recipe["pairs"] == {"text": 24, "vision": 24}


def test_save_and_load(scores, tmp_path):
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path in paths:
        scores.save(path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    loaded = uwm.Scores.load(paths[0])
    assert list(loaded) == list(scores)
    assert all(torch.equal(loaded[w], scores[w]) for w in scores)
    assert (loaded.base, loaded.guards, loaded.recipe) == (scores.base, scores.guards, scores.recipe)


def test_another_kind_or_format_is_refused(scores, tmp_path):
    path = tmp_path / "s.safetensors"
    scores.save(path)
    with pytest.raises(BadInput, match="holds scores, expected patch"):
        uwm.Patch.load(path)
    with safe_open(str(path), "pt") as file:
        about = json.loads(file.metadata()[records.KEY])
    about["format"] = 99
    from safetensors.torch import load_file, save_file

    save_file(load_file(path), path, metadata={records.KEY: json.dumps(about)})
    with pytest.raises(BadInput, match="format 99, this uwm reads 1"):
        uwm.Scores.load(path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"text_layers": "fc3"}, "--text-layers 'fc3' matches no weight; the text tower has blocks 0–1 with q_proj"),
        ({"vision_layers": "vision.[3-9].fc2"}, "matches no weight"),
        ({"method": "magic"}, "expected one of uwm"),
        ({"variant": "median"}, "--variant 'median': expected one of ratio, ratio-of-means, difference, unsafe-only"),
        (
            {"method": "grad-unsafe", "variant": "ratio"},
            "--variant 'ratio': the method grad-unsafe has no variants; leave it out, or use --method uwm",
        ),
        ({"text_layers": "none", "vision_layers": "none"}, "no weight is chosen"),
    ],
)
def test_wrong_settings(model, tiny_set, flags, message):
    with pytest.raises(BadInput, match=message.replace("[", r"\[")):
        uwm.score(model, uwm.read_calibration(tiny_set), **flags)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_does_not_depend_on_the_batch_size(model, tiny_set, scores, variant):
    calib = uwm.read_calibration(tiny_set)
    whole, parts = (uwm.score(model, calib, variant=variant, batch_size=size) for size in (24, 7))
    for weight in whole:
        torch.testing.assert_close(parts[weight], whole[weight], rtol=1e-4, atol=1e-7)
        assert torch.equal(whole[weight], scores[weight]) == (variant == "ratio")
        assert (whole[weight] > 0).any()


def test_unpaired_captions_serve_the_ratio_of_means(model):
    safe, unsafe = model.tokenize(["a dog", "a cat and a tree", "a cup"]), model.tokenize(["a bomb", "a big knife"])

    def scores(*batches, **settings):
        pairs = [
            uwm.PairBatch(
                safe_input_ids=safe[0][a], safe_attention_mask=safe[1][a],
                unsafe_input_ids=unsafe[0][b], unsafe_attention_mask=unsafe[1][b],
            )
            for a, b in batches
        ]  # fmt: skip
        return uwm.score(model, pairs, vision_layers="none", **settings)

    whole = scores((slice(0, 3), slice(0, 2)), variant="ratio-of-means")
    parts = scores((slice(2, 3), slice(1, 2)), (slice(0, 2), slice(0, 1)), variant="ratio-of-means")
    for weight in whole:
        torch.testing.assert_close(parts[weight], whole[weight], rtol=1e-4, atol=1e-7)
    with pytest.raises(BadInput, match="3 safe and 2 unsafe samples"):
        scores((slice(0, 3), slice(0, 2)))


def test_the_variant_is_recorded_where_it_is_not_the_default(model, tiny_set, scores, tmp_path):
    calib = uwm.read_calibration(tiny_set)
    other = uwm.score(model, calib, variant="difference")
    other.save(tmp_path / "s.safetensors")
    assert uwm.Scores.load(tmp_path / "s.safetensors").variant == other.recipe["variant"] == "difference"
    assert uwm.select(other).recipe["variant"] == "difference"
    asked = uwm.score(model, calib, variant="ratio")
    assert asked.recipe == scores.recipe  # so the default's files are those of before there were variants
    assert "variant" not in scores.recipe
    assert scores.variant == "ratio"
    assert uwm.score(model, calib, method="grad-unsafe", text_layers="none").variant is None


def test_a_text_only_set_scores_the_text_tower_and_refuses_the_other(model, tiny_set, tmp_path):
    lines = (tiny_set / "pairs.jsonl").read_text().splitlines()
    keep = [{k: v for k, v in json.loads(line).items() if "image" not in k} for line in lines]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, keep)))
    calib = uwm.read_calibration(tmp_path)
    assert {w.tower for w in uwm.score(model, calib)} == {"text"}
    with pytest.raises(BadInput, match="has no images for the vision tower"):
        uwm.score(model, calib, vision_layers="vision.*.fc2")
