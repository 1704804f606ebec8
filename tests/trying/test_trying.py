"""`uwm try`: results are the nearest candidates, before and after, and are shown as the set tells of them."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from conftest import ARCH
from PIL import Image
from terminal import done, refused

import uwm
from uwm.embedding import embed
from uwm.errors import BadInput
from uwm.trying import TryRecipe, run_try
from uwm.trying.running import DEMO_QUERY


@pytest.fixture(scope="module")
def photos(tiny_set, tmp_path_factory):
    """A plain folder of images, in folders and named by what they show."""
    folder = tmp_path_factory.mktemp("photos") / "my photos"
    names = ("a_red-dog.png", "deeper/a cat.png", "deeper/tree.PNG")
    for name, image in zip(names, sorted((tiny_set / "images").iterdir()), strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, folder / name)
    return folder


def nearest(model, pairs, query, kind, top=5):
    """What a query of the safe or unsafe side of a pair is nearest to, slowly: (cosine, side, id)."""
    e = embed(uwm.load(model), pairs)
    side, row = query
    asked = getattr(e, f"{side}_{'image' if kind == 'text' else 'text'}")[row].double()
    rows = [(s, p.id, v) for i, p in enumerate(pairs.pairs) for s in ("safe", "unsafe")
            for v in [getattr(e, f"{s}_{kind}")[i].double()]]  # fmt: skip
    found = sorted(((float(v @ asked), s, name) for s, name, v in rows), reverse=True)
    return [(pytest.approx(cosine, abs=1e-5), s) for cosine, s, _ in found[:top]]


def test_a_caption_finds_the_nearest_images_before_and_after(made, tiny_hf, tiny_set):
    pairs = uwm.read_calibration(tiny_set, split="test")
    query = pairs.pairs[2].unsafe_text
    recipe = TryRecipe(str(tiny_hf), str(made / "edited"), query, str(tiny_set), split="test")
    tried = run_try(recipe)
    for column, model in (("before", tiny_hf), ("after", made / "edited")):
        found = [(hit.similarity, hit.item.side) for hit in tried.columns[column]]
        assert found == nearest(model, pairs, ("unsafe", 2), "image")
    assert tried.columns["before"] != tried.columns["after"]


def test_an_image_finds_the_nearest_captions(made, tiny_hf, tiny_set):
    pairs = uwm.read_calibration(tiny_set, split="test")
    query = str(pairs.pairs[1].safe_image)
    tried = run_try(TryRecipe(str(tiny_hf), query=query, images=str(tiny_set), split="test", top=3))
    assert [*tried.columns] == ["model"]
    found = [(hit.similarity, hit.item.side) for hit in tried.columns["model"]]
    assert found == nearest(tiny_hf, pairs, ("safe", 1), "text", 3)
    captions = {text for pair in pairs.pairs for text in (pair.safe_text, pair.unsafe_text)}
    assert {hit.item.content for hit in tried.columns["model"]} <= captions


def test_a_patch_is_the_model_that_it_makes(made, tiny_hf, tiny_set):
    recipes = (TryRecipe(str(tiny_hf), str(made / edited), "a dog", str(tiny_set)) for edited in ("edited", "patch.safetensors"))  # noqa: E501  # fmt: skip
    whole, patch = map(run_try, recipes)
    pick = [[(hit.item, pytest.approx(hit.similarity, abs=1e-6)) for hit in t.columns["after"]] for t in (whole,)]
    assert [(hit.item, hit.similarity) for hit in patch.columns["after"]] == pick[0]


@pytest.mark.parametrize("bare", ["model", "edited"])
def test_the_settings_of_bare_weights_are_said_of_the_bare_file_alone(bare, tiny_hf, tiny_open_clip, tiny_set):
    file = str(tiny_open_clip / "open_clip_model.safetensors")
    model, edited = (file, str(tiny_hf)) if bare == "model" else (str(tiny_hf), file)
    tried = run_try(TryRecipe(model, edited, "a dog", str(tiny_set), arch=ARCH))
    names = {column: [hit.item.name for hit in hits] for column, hits in tried.columns.items()}
    assert names["before"] == names["after"]  # the same weights in two forms


def test_a_patch_is_no_bare_weights(made, tiny_hf, tiny_set):
    with pytest.raises(BadInput, match="--arch"):
        run_try(TryRecipe(str(tiny_hf), str(made / "patch.safetensors"), "a dog", str(tiny_set), arch=ARCH))


def test_a_plain_folder_is_searched_by_images_and_by_names_and_nothing_is_marked(run_uwm, tiny_hf, photos):
    tried = run_try(TryRecipe(str(tiny_hf), query="a dog", images=str(photos)))
    assert {hit.item.name for hit in tried.columns["model"]} == {"a_red-dog.png", "deeper/a cat.png", "deeper/tree.PNG"}
    assert not tried.told
    out = done(run_uwm("try", tiny_hf, photos / "deeper" / "tree.PNG", "--images", photos))
    assert all(name in out for name in ("a red dog", "a cat", "tree"))
    assert "SEARCHED 3 captions of my photos" in out
    assert "UNSAFE" not in out


def test_an_image_that_cannot_be_read_is_left_out_and_told(run_uwm, tiny_hf, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "p")
    (tmp_path / "p" / "broken.png").write_text("no image")
    code, out, err = run_uwm("try", tiny_hf, "a dog", "--images", tmp_path / "p")
    assert code == 0
    assert "SEARCHED 3 images" in out
    assert "warning: 1 images cannot be read and are left out" in err
    assert "broken.png" in err


def test_an_image_of_several_pairs_is_found_once(tiny_hf, tiny_set, tmp_path):
    image = next((tiny_set / "images").iterdir())
    lines = []
    for n in range(2):
        shutil.copy(image, tmp_path / f"safe{n}.png")
        Image.new("RGB", (8, 8), (n, 0, 0)).save(tmp_path / f"unsafe{n}.png")
        row = {"id": str(n), "safe_text": f"a dog {n}", "unsafe_text": f"a bomb {n}"}
        lines.append(json.dumps({**row, "safe_image": f"safe{n}.png", "unsafe_image": f"unsafe{n}.png"}))
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    assert len(run_try(TryRecipe(str(tiny_hf), query="a dog", images=str(tmp_path))).searched.items) == 3


def test_results_stand_side_by_side_in_80_columns_and_unsafe_ones_are_marked(run_uwm, made, tiny_hf, tiny_set):
    arguments = ("try", tiny_hf, made / "edited", "a bomb and a knife", "--images", tiny_set, "--top", "10")
    out, found = done(run_uwm(*arguments)), json.loads(done(run_uwm(*arguments, "--json")))
    assert max(map(len, out.splitlines())) <= 80
    for column in ("before", "after"):
        unsafe = sum(result["side"] == "unsafe" for result in found["results"][column])
        assert f"{column} {unsafe} of 10" in out
    both = sum(result["side"] == "unsafe" for results in found["results"].values() for result in results)
    table = out.split("before", 1)[1].split("UNSAFE")[0]
    assert table.count("✗") == both > 0
    assert re.search(r"\n 1 [✗ ] -?\d\.\d\d .* [✗ ] -?\d\.\d\d ", out)


def test_the_page_has_both_columns_their_images_and_no_markup_of_others(run_uwm, made, tiny_hf, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "p")
    (tmp_path / "p" / "a_red-dog.png").rename(tmp_path / "p" / "<script>\x1b[31m\u202e.png")
    page = tmp_path / "try.html"
    out = done(run_uwm("try", tiny_hf, made / "edited", "<b>dog\x1b", "--images", tmp_path / "p", "--html", page))
    text = page.read_text("utf-8")
    assert not {"\x1b", "\u202e"} & {*out, *text}
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "&lt;b&gt;dog" in text
    assert text.count("data:image/webp") == 6
    assert [len(re.findall(f"<h3>{name}\\b", text)) for name in ("before", "after")] == [1, 1]


MISTAKES = {
    "no query": (("{model}",), 2, "expected MODEL [EDITED] QUERY"),
    "nothing to search": (("{model}", "a dog"), 2, "--images FOLDER"),
    "no such folder": (("{model}", "a dog", "--images", "nowhere"), 2, "--images nowhere: no such folder"),
    "no such image": (("{model}", "dog.jpg", "--images", "{set}"), 2, "dog.jpg: no such picture"),
    "an empty query": (("{model}", " ", "--images", "{set}"), 2, "the query is empty"),
    "an empty folder": (("{model}", "a dog", "--images", "{empty}"), 2, "no images to search"),
    "a split of a folder": (("{model}", "a dog", "--images", "{empty}", "--split", "x"), 2, "is no calibration set"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_before_a_model_is_loaded(name, run_uwm, tiny_hf, tiny_set, tmp_path, monkeypatch):
    monkeypatch.setattr("uwm.trying.running.load", lambda *_, **__: pytest.fail("loaded"))
    arguments, code, words = MISTAKES[name]
    (tmp_path / "empty").mkdir()
    places = {"model": tiny_hf, "set": tiny_set, "empty": tmp_path / "empty"}
    refused(run_uwm("try", *(argument.format(**places) for argument in arguments)), code, words)


def test_a_model_of_one_tower_is_refused(run_uwm, tiny_hf, tiny_set, monkeypatch):
    monkeypatch.setattr("uwm.models.Model.modalities", ("text",))
    refused(run_uwm("try", tiny_hf, "a dog", "--images", tiny_set), 2, "the model has no vision side")


def test_embeddings_that_are_not_finite_are_refused(run_uwm, tiny_hf, tiny_set, monkeypatch):
    monkeypatch.setattr("uwm.trying.running.embed_sources", lambda *_, **__: torch.full((1, 4), torch.nan))
    refused(run_uwm("try", tiny_hf, "a dog", "--images", tiny_set), 1, "NaN or infinite embeddings")


@pytest.mark.slow
def test_the_demo_shows_the_point(run_uwm):
    out = done(run_uwm("try"))
    assert f"QUERY    {DEMO_QUERY}" in out
    assert "UNSAFE   before 5 of 5 · after 0 of 5" in out
