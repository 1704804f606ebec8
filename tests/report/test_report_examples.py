"""Examples: what a query finds is what its embedding is nearest to, and is shown only when asked for."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace

import pytest
import torch
from documents_by_hand import document
from PIL import Image

import uwm
from uwm.embedding import Embeddings, embed
from uwm.recipe import Recipe, run
from uwm.report import find_examples, html_report
from uwm.report.examples import PER_KIND, RESULTS, THUMBNAIL, thumbnail


@pytest.fixture(scope="module")
def whole(tiny_set):
    return uwm.read_calibration(tiny_set, split="test")


@pytest.fixture(scope="module")
def pairs(whole):
    return whole.pairs


@pytest.fixture(scope="module")
def embeddings(pairs):
    generator = torch.Generator().manual_seed(1)
    made = (torch.nn.functional.normalize(torch.randn(len(pairs), 6, generator=generator)) for _ in range(4))
    return {"before": Embeddings(*made)}


def test_results_are_the_nearest_of_all_items_best_first(whole, pairs, embeddings):
    found = find_examples(whole, embeddings, seed=3)
    assert [example.kind for example in found] == [kind for kind in ("tu", "vu", "ts", "vs") for _ in range(PER_KIND)]
    e = embeddings["before"]
    for example in found[:PER_KIND]:
        row = [p.unsafe_text for p in pairs].index(example.query.content)
        items = [*((p.safe_image, "safe") for p in pairs), *((p.unsafe_image, "unsafe") for p in pairs)]
        similarity = [float(v @ e.unsafe_text[row]) for v in (*e.safe_image, *e.unsafe_image)]
        best = sorted(range(len(items)), key=lambda i: -similarity[i])[:RESULTS]
        assert [(item.content, item.side) for item in example.results["before"]] == [items[i] for i in best]
        assert [item.own for item in example.results["before"]] == [i % len(pairs) == row for i in best]


def test_the_draw_depends_on_the_seed_only(whole, embeddings):
    assert find_examples(whole, embeddings, 3) == find_examples(whole, embeddings, 3)
    assert find_examples(whole, embeddings, 3) != find_examples(whole, embeddings, 4)


def test_few_pairs_give_few_examples(whole, embeddings):
    one = {"before": Embeddings(*(value[:1] for value in vars(embeddings["before"]).values()))}
    found = find_examples(replace(whole, pairs=whole.pairs[:1]), one)
    assert len(found) == 4
    assert [len(example.results["before"]) for example in found] == [2] * 4


def test_captions_are_escaped(whole, pairs, embeddings):
    told = [replace(pair, unsafe_text=f"</ol><script>alert({i})</script>") for i, pair in enumerate(pairs)]
    hostile = replace(whole, pairs=tuple(told))
    html = html_report(document(), find_examples(hostile, embeddings))
    assert "<script" not in html
    assert "&lt;script&gt;alert(" in html


def test_thumbnails_are_small_webp_pictures(tmp_path):
    Image.effect_noise((300, 150), 50).convert("RGB").save(tmp_path / "x.png")
    kind, data = thumbnail(tmp_path / "x.png").split(",")
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (kind, picture.format, picture.size) == ("data:image/webp;base64", "WEBP", (THUMBNAIL, THUMBNAIL // 2))


def test_only_when_asked_for(tiny_hf, tiny_set, tmp_path):
    recipe = Recipe(model=str(tiny_hf), calib=str(tiny_set), eval_splits=("test",))
    run(recipe, tmp_path / "without")
    run(recipe, tmp_path / "with", show_examples=True)
    without, with_ = ((tmp_path / name / "report.html").read_text("utf-8") for name in ("without", "with"))
    assert "a picture of" not in without
    assert "data:" not in without
    assert "a picture of" in with_
    sources = set(re.findall(r'src="([^"]*)"', with_))
    assert sources
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    assert str(tiny_set) not in with_
    for name in ("uwm.json", "README.md"):
        assert "a picture of" not in (tmp_path / "with" / name).read_text("utf-8")


def test_they_are_what_the_written_model_finds(tiny_hf, tiny_set, tmp_path):
    recipe = Recipe(model=str(tiny_hf), calib=str(tiny_set), eval_splits=("test",))
    run(recipe, tmp_path / "out", show_examples=True)
    chosen = uwm.read_calibration(tiny_set, split="test")
    made = {
        column: embed(uwm.load(path), chosen) for column, path in (("before", tiny_hf), ("after", tmp_path / "out"))
    }
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    for example in find_examples(chosen, made):
        if example.kind == "vu":
            for found in example.results.values():
                captions = r"</bdi>.*?<bdi[^>]*>".join(re.escape(item.content) for item in found)
                assert re.search(captions, page)
