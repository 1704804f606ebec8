"""The authors' program, matched: scores, selections, embeddings and metrics of tests/golden."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDEN

import uwm
from uwm import metrics
from uwm.editing.entries.selection import top_mass

TENSORS = ("safe_pixel_values", "unsafe_pixel_values", "safe_input_ids", "safe_attention_mask", "unsafe_input_ids", "unsafe_attention_mask")  # noqa: E501  # fmt: skip


def batches(golden, size):
    return [uwm.PairBatch(*(golden[k][i : i + size] for k in TENSORS)) for i in range(0, 12, size)]


@pytest.fixture(scope="module")
def model():
    return uwm.load(GOLDEN / "model")


@pytest.mark.parametrize("size", [4, 5, 12])
def test_scores_and_selections(model, golden, size):
    scores = uwm.score(model, batches(golden, size), text_layers="out_proj,fc2", vision_layers="fc2,fc1,out_proj")
    assert len(scores) == 10
    for weight, values in scores.items():
        torch.testing.assert_close(values, golden[f"uwm.{weight}.score"], rtol=1e-5, atol=0)
        for mass in (0.02, 0.1):
            selected = torch.zeros(values.numel(), dtype=torch.uint8)
            selected[top_mass(values, mass)] = 1
            assert (selected != golden[f"uwm.{weight}.selected.{mass}"].flatten()).sum() <= 2


def embeddings(model, golden):
    with torch.no_grad():
        return {
            "safe_image_embeds": model.encode_image(golden["safe_pixel_values"]),
            "unsafe_image_embeds": model.encode_image(golden["unsafe_pixel_values"]),
            "safe_text_embeds": model.encode_text(golden["safe_input_ids"], golden["safe_attention_mask"]),
            "unsafe_text_embeds": model.encode_text(golden["unsafe_input_ids"], golden["unsafe_attention_mask"]),
        }


def assert_same_embeddings(found, golden, prefix):
    for name, value in found.items():
        torch.testing.assert_close(F.normalize(value, dim=-1), F.normalize(golden[prefix + name], dim=-1))


def test_embeddings_before_and_after(model, golden):
    assert_same_embeddings(embeddings(model, golden), golden, "original.")
    patch = uwm.select(uwm.score(model, batches(golden, 4)), mass=0.1)
    with uwm.patched(model, patch):
        assert_same_embeddings(embeddings(model, golden), golden, "edited.tau0.1.")
    assert_same_embeddings(embeddings(model, golden), golden, "original.")


def test_metrics(golden):
    expected = json.loads((GOLDEN / "golden.json").read_text())
    ts, tu, vs, vu = (golden[f"metrics.{k}"] for k in ("safe_text", "unsafe_text", "safe_image", "unsafe_image"))
    found = {name: round(100 * value, 2) for name, value in metrics.safeground(ts, tu, vs, vu).items()}
    names = {"Txt": "text", "Img": "image", "PS": "safe_query", "PU": "unsafe_query", "GS": "group"}
    assert {names[k]: found[k] for k in names} == expected["safeground_percent"]
    names = {"P_ts": "safe_text", "P_tu": "unsafe_text", "P_vs": "safe_image", "P_vu": "unsafe_image"}
    assert {names[k]: found[k] for k in names} == expected["preference_percent"]

    def percent(values):
        return {str(k): round(100 * v, 2) for k, v in values.items()}

    safe, union = expected["recall_safe_percent"], expected["recall_union_percent"]
    assert percent(metrics.recall(ts, vs)) == safe["text_to_image"]
    assert percent(metrics.recall(vs, ts)) == safe["image_to_text"]
    assert percent(metrics.union_recall(tu, vs, vu)) == union["unsafe_text_to_safe_image"]
    assert percent(metrics.union_recall(vu, ts, tu)) == union["unsafe_image_to_safe_text"]


@pytest.mark.parametrize(
    ("method", "name", "rules"),
    [
        ("grad-unsafe", "GradientUnsafe", {"text": "top-fraction", "vision": "top-mass"}),
        ("grad-safe-clip", "GradientSafeCLIP", {"text": "top-fraction", "vision": "top-fraction"}),
    ],
)
def test_gradient_baselines(model, golden, method, name, rules):
    scores = uwm.score(model, batches(golden, 4), method=method)
    patch = uwm.select(scores, mass=0.035)
    assert patch.recipe["rule"] == rules
    assert patch.alpha == 0
    assert len(scores) == 4
    for weight, values in scores.items():
        expected = golden[f"{name}.{weight}.score"]
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6 * expected.max().item())
        selected = torch.zeros(values.numel(), dtype=torch.uint8)
        selected[patch.flips[weight]] = 1
        assert (selected != golden[f"{name}.{weight}.selected.0.035"].flatten()).sum() <= 2
    assert not any(p.requires_grad for p in model.module.parameters())
