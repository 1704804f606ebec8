"""The arithmetic of zero-shot accuracy on real models, against loops that do it one picture at a time."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity

import uwm
from uwm.errors import BadInput, InvalidResult
from uwm.intervals import bootstrap
from uwm.knowledge import DataSet, ZeroShot, difference, mean_over_sets, open_data_sets, zero_shot
from uwm.knowledge.measure import class_embeddings, class_labels
from uwm.shipped_files import DEMO_SET

NAMES = ("dog", "cat", "knife", "tree", "car", "cup", "bomb")


class Noise:
    """Labelled pictures of noise; it remembers in which order they were read."""

    def __init__(self, count):
        self.count = count
        self.asked = []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.asked.append(index)
        rng = np.random.default_rng(index)
        return Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)), index % 7


@pytest.fixture(scope="module")
def model(tiny_hf):
    return uwm.load(tiny_hf)


@pytest.fixture
def noise():
    return DataSet("noise", Noise(23), NAMES, ("a picture of a {}",), frozenset({"knife", "bomb"}))


@torch.no_grad()
def by_hand(model, data):
    """One picture at a time: its class, and the classes from the nearest to the farthest."""
    texts = [model.encode_text(*model.tokenize([data.templates[0].replace("{}", n)])) for n in data.class_names]
    found = []
    for i in range(len(data)):
        picture, target = data.read(i)
        image = model.encode_image(model.preprocess([picture]))
        near = [cosine_similarity(image, text).item() for text in texts]
        found.append((target, sorted(range(len(near)), key=lambda n: -near[n])))
    return found


@pytest.mark.parametrize("at_a_time", [1, 5, 1024])
def test_the_prompts_of_all_classes_are_tokenized_some_at_a_time(model, noise, at_a_time, monkeypatch):
    twice = replace(noise, class_names=(*noise.class_names, noise.class_names[1]), templates=("a {}", "{} here"))
    monkeypatch.setattr("uwm.knowledge.measure.TOKENIZED", at_a_time)
    calls, tokenize = [], model.tokenize
    monkeypatch.setattr(model, "tokenize", lambda texts: calls.append(len(texts)) or tokenize(texts))
    count = len(noise.class_names)
    assert class_labels(model, twice).tolist() == [*range(count), 1]
    assert sum(calls) == 2 * count + 2
    assert max(calls) <= max(2, at_a_time)


def test_figures_by_hand(model, noise):
    found = by_hand(model, noise)
    result = zero_shot(model, noise, batch_size=4)
    right = [order[0] == target for target, order in found]
    of_class = {c: [r for r, (target, _) in zip(right, found, strict=True) if target == c] for c in range(7)}
    unsafe = [r for r, (target, _) in zip(right, found, strict=True) if NAMES[target] in ("knife", "bomb")]
    assert result.right.tolist() == right
    assert 0 < sum(right) < 23  # the figures below could come out wrong
    figures = result.figures
    assert figures["pictures"] == 23
    assert figures["top1"] == pytest.approx(sum(right) / 23)
    assert figures["top5"] == pytest.approx(sum(target in order[:5] for target, order in found) / 23)
    assert figures["mean_per_class"] == pytest.approx(sum(sum(r) / len(r) for r in of_class.values()) / 7)
    assert figures["top1_interval"] == list(bootstrap({"x": torch.tensor(right)}, 0)["x"][1:])
    assert figures["top1_unsafe"] == pytest.approx(sum(unsafe) / len(unsafe))
    json.dumps(figures)


@pytest.mark.parametrize("unsafe", [*NAMES, "nothing here"])
def test_unsafe_classes_apart(unsafe, model, noise):
    result = zero_shot(model, replace(noise, unsafe_classes=frozenset({unsafe})))
    rows = torch.tensor([NAMES[i % 7] == unsafe for i in range(23)])
    assert result.figures["top1_safe"] == pytest.approx(result.right[~rows].double().mean().item())
    if unsafe in NAMES:
        assert result.figures["top1_unsafe"] == pytest.approx(result.right[rows].double().mean().item())
    else:
        assert "top1_unsafe" not in result.figures


def test_no_unsafe_classes(model, noise):
    figures = zero_shot(model, replace(noise, unsafe_classes=frozenset())).figures
    assert figures.keys() == {"top1", "top5", "mean_per_class", "pictures", "top1_interval"}


def test_the_demo_model_knows_its_classes():
    """Against the slow loop on the first 40 classes, where the model is mostly right."""
    model = uwm.load("demo")
    seen = open_data_sets([str(DEMO_SET / "zero_shot" / "seen")])["seen"]
    some = replace(seen, pictures=[seen.pictures[i] for i in range(0, len(seen), 17)])
    result = zero_shot(model, some)
    assert result.right.tolist() == [order[0] == target for target, order in by_hand(model, some)]
    assert 0.5 < result.figures["top1"] < 0.9


@pytest.mark.parametrize("batch_size", [1, 5, 23, 64])
def test_neither_batch_size_nor_threads_matter(batch_size, model, noise):
    expected = zero_shot(model, noise, batch_size=7, workers=1)
    found = zero_shot(model, noise, batch_size=batch_size, workers=3)
    assert found.figures == expected.figures
    assert found.right.equal(expected.right)


def test_pictures_are_read_once_and_at_most_two_batches_ahead(model, noise):
    ahead = []

    def progress(batches, total, name):
        assert (total, name) == (6, "noise")
        for number, batch in enumerate(batches):
            ahead.append(len(noise.pictures.asked) - 4 * number)
            yield batch

    zero_shot(model, noise, batch_size=4, progress=progress)
    assert sorted(noise.pictures.asked) == list(range(23))
    assert max(ahead) <= 2 * 4


def test_prompt_ensemble_by_hand(model, noise):
    data = replace(noise, templates=("a {}", "a picture of a {} and a {}", "many {}"))
    found = class_embeddings(model, data, batch_size=4)
    with torch.no_grad():
        for name, row in zip(NAMES, found, strict=True):
            texts = [template.replace("{}", name) for template in data.templates]
            rows = [model.encode_text(*model.tokenize([text]))[0] for text in texts]
            mean = sum(r / r.norm() for r in rows) / 3
            torch.testing.assert_close(row, mean / mean.norm(), rtol=1e-4, atol=1e-5)


def test_a_model_that_says_the_same_of_everything_is_at_chance(tiny_hf, noise):
    """A tie is worth its chance, whichever class comes first."""
    model = uwm.load(tiny_hf)
    with torch.no_grad():
        model.module.text_projection.weight.zero_()
    result = zero_shot(model, noise)
    assert result.right.tolist() == pytest.approx([1 / 7] * 23)


def test_nan(tiny_hf, noise):
    model = uwm.load(tiny_hf)
    with torch.no_grad():
        model.module.visual_projection.weight[0, 0] = float("nan")
    with pytest.raises(InvalidResult, match="noise: the model's embeddings are NaN"):
        zero_shot(model, noise)


def test_no_pictures(model, noise):
    with pytest.raises(BadInput, match="noise: the data set has no pictures"):
        zero_shot(model, replace(noise, pictures=[]))


# ---------------------------------------------------------------- two results


def result(right):
    return ZeroShot({}, torch.tensor(right))


def test_difference_is_paired():
    before = result([True] * 50 + [False] * 50)
    after = result([True] * 45 + [False] * 5 + [True] * 2 + [False] * 48)
    found = difference(after, before)
    mean, low, high = found["difference"]
    assert (found["gained"], found["lost"]) == (2, 5)
    assert mean == pytest.approx(-0.03)
    assert low < mean < high
    assert high - low < 0.12  # an unpaired interval of two shares of 100 would be about 0.28
    mirrored = difference(before, after)["difference"]
    assert mirrored == pytest.approx((-mean, -high, -low))
    none = difference(after, after)
    bound = 1 - 0.025**0.01  # for none of 100
    assert (none["gained"], none["lost"], none["difference"]) == (0, 0, pytest.approx((0, -bound, bound)))


def test_difference_of_other_sets():
    with pytest.raises(BadInput, match="results of 2 and 3 pictures"):
        difference(result([True] * 2), result([True] * 3))


def test_mean_over_sets():
    figures = {
        "a": {"top1": 0.2, "top5": 0.4, "mean_per_class": 0.1},
        "b": {"top1": 0.4, "top5": 1, "mean_per_class": 0.3},
    }
    assert mean_over_sets(figures) == pytest.approx({"top1": 0.3, "top5": 0.7, "mean_per_class": 0.2})
