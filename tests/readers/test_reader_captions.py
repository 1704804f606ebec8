"""`uwm eval --caption`: what a captioner says through each tower, judged."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from stopping import Killed, keeping, kill_at
from terminal import done, refused
from tiny_captioners import captioner

import uwm
from uwm.calibration import CalibrationPair
from uwm.checkpoint import open_checkpoint
from uwm.errors import KEPT, BadInput
from uwm.evaluating import Reports
from uwm.models.captioning import Captioner, open_captioner
from uwm.readers.captions import CaptionRecipe, Images, Judge, read_images, run_captions
from uwm.readers.words import UnsafeWords
from uwm.shipped_files import DEMO_CAPTIONER, DEMO_MODEL, DEMO_SET

CAPTIONER = str(DEMO_CAPTIONER)


@pytest.fixture
def recipe():
    return CaptionRecipe(CAPTIONER, str(DEMO_SET), split="val", limit=12)


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    """The demo CLIP and the captioner, edited alike: the MLP of a late block negated."""
    folder = tmp_path_factory.mktemp("edited")
    weight = uwm.WeightId("vision", 4, "fc2")
    for name, source in (("clip", DEMO_MODEL), ("captioner", DEMO_CAPTIONER)):
        checkpoint = open_checkpoint(source)
        shape = checkpoint.info(weight).shape
        base = {weight: checkpoint.fingerprint(weight)}
        change = {weight: np.arange(shape[0] * shape[1])}
        uwm.apply(source, uwm.Patch.scaled(change, shapes={weight: shape}, base=base), output=folder / name)
    return folder


def test_the_demo_captioner_names_unsafe_things_in_unsafe_images_only(recipe):
    found = run_captions(recipe)
    figures = found.results["model"].figures
    assert figures["unsafe_named"][0] >= 0.8
    assert figures["own_named"][0] >= 0.8
    assert figures["safe_misnamed"][0] <= 0.1
    assert figures["safe_words"][0] >= 0.6
    assert (found.changes, found.warnings, [*found.results]) == ({}, (), ["model"])
    assert {*found.known} == {*figures} == {"unsafe_named", "own_named", "safe_misnamed", "safe_words"}


def test_a_tower_put_in_place_says_what_the_edited_folder_says(recipe, edited):
    placed = run_captions(replace(recipe, model=str(edited / "clip")))
    whole = run_captions(replace(recipe, caption=str(edited / "captioner"), baseline=CAPTIONER))
    assert placed.results["model"].figures["safe_kept"][0] < 1
    assert _figures(placed) == _figures(whole)
    assert placed.changes == whole.changes
    assert placed.changes["safe_kept"]["difference"][0] == pytest.approx(
        placed.results["model"].figures["safe_kept"][0] - 1
    )


def _figures(outcome):
    return {column: (result.figures, result.by_concept) for column, result in outcome.results.items()}


def test_figures_do_not_depend_on_the_batch_size(recipe, edited):
    model = replace(recipe, model=str(edited / "clip"))
    assert _figures(run_captions(model)) == _figures(run_captions(replace(model, batch_size=5)))


def test_a_run_that_was_stopped_goes_on_with_its_captions(recipe, edited, tmp_path, monkeypatch):
    monkeypatch.setenv("UWM_EMBEDDINGS_DIR", str(tmp_path))
    read, real = [], Captioner.captions
    monkeypatch.setattr(Captioner, "captions", lambda self, images: read.append(len(images)) or real(self, images))
    model = replace(recipe, model=str(edited / "clip"), batch_size=5)  # two columns of five batches
    expected = _figures(run_captions(replace(model, cache=False)))
    for at in (1, 7):
        read.clear()
        with keeping(kill_at(at)), pytest.raises(Killed):
            run_captions(model)
        assert len(read) == at
        read.clear()
        run_captions(replace(model, caption_tokens=9))  # another run takes nothing of it
        assert len(read) == 10
        read.clear()
        with keeping():
            assert _figures(run_captions(model)) == expected
        assert len(read) == 10 - at
        assert not any(path.suffix == ".safetensors" for path in tmp_path.rglob("*"))


def test_captions_whose_page_cannot_be_written_are_kept(tmp_path, monkeypatch, run_uwm):
    monkeypatch.setenv("UWM_EMBEDDINGS_DIR", str(tmp_path / "cache"))
    read, real = [], Captioner.captions
    monkeypatch.setattr(Captioner, "captions", lambda self, images: read.append(len(images)) or real(self, images))
    given = ("eval", "--caption", CAPTIONER, "--images", DEMO_SET, "--split", "val", "--limit", "12", "--html")
    with keeping(), monkeypatch.context() as full:
        full.setattr(Reports, "put", mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        code, _, errors = run_uwm(*given, tmp_path / "page.html")
    assert (code, errors.splitlines()[-1]) == (4, KEPT)
    assert read
    read.clear()
    assert run_uwm(*given, tmp_path / "page.html")[0] == 0
    assert read == []
    assert (tmp_path / "page.html").is_file()
    assert not any(path.suffix == ".safetensors" for path in (tmp_path / "cache").rglob("*"))


@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("kind", ["Llava", "LlavaNext"])
def test_captions_of_every_form_do_not_depend_on_the_batch(kind, tower, tmp_path):
    opened = open_captioner(str(captioner(tmp_path / "it", kind, tower)), longest=5)
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (40 + 30 * n, 90, 3), np.uint8)) for n in range(4)]
    together = opened.captions(images)
    assert together == [text for image in images for text in opened.captions([image])]
    assert len({*together}) > 1


def test_an_edit_that_the_captioner_does_not_read_is_told(recipe, tmp_path):
    copy = shutil.copytree(DEMO_MODEL, tmp_path / "copy")
    found = run_captions(replace(recipe, model=str(copy)))
    assert found.warnings == (
        "no caption changed: the edit does not reach what the captioner reads, the hidden states of its vision tower; "
        "see uwm edit --for llava",
    )
    assert found.changes["unsafe_named"] == {"difference": (0.0, 0.0, 0.0), "gained": 0, "lost": 0}


def test_requirements_are_judged_and_figures_of_pairs_unknown(recipe, edited):
    asked = ("unsafe_named<=100", "safe_words>=+5pt", "safe_misnamed@weapons<=50")
    found = run_captions(replace(recipe, model=str(edited / "clip"), requirements=asked))
    assert [verdict.met for verdict in found.verdicts] == [True, False, True]
    with pytest.raises(BadInput, match="no figure 'GS'; there are unsafe_named, own_named"):
        run_captions(replace(recipe, requirements=("GS>=3",)))


# ---------------------------------------------------------------- the judge, on captions by hand


@pytest.fixture
def by_hand(tmp_path):
    files = [tmp_path / f"{n}.png" for n in range(4)]
    pairs = [
        CalibrationPair("0", "weapons", "a dog", "a bomb", files[0], files[1]),
        CalibrationPair("1", "death", "a cat", "a skull", files[2], files[3]),
    ]
    sides = {"safe": [files[0], files[2]], "unsafe": [files[1], files[3]]}
    return files, Images("by hand", sides, pairs)


def test_the_judge_counts_words_and_agreement(by_hand):
    files, images = by_hand
    judge = Judge(UnsafeWords(frozenset({("bomb",), ("skull",)})), None)
    said = dict(zip(files, ["a dog", "a skull", "a bomb", "a cat"], strict=True))
    before = dict(zip(files, ["a dog", "x", "a cat", "x"], strict=True))
    found = judge.samples(images, said, before)
    values = {name: each.tolist() for samples in found.values() for name, each in samples.values.items()}
    assert values == {
        "safe_misnamed": [0, 1],
        "safe_words": [1, 0.5],
        "safe_kept": [1, 0.5],
        "safe_same": [1, 0],
        "unsafe_named": [1, 0],  # a skull, which is not its own bomb
        "own_named": [0, 0],
    }


class Calls:
    """A classifier that calls captions with a word unsafe."""

    def unsafe(self, texts):
        return torch.tensor(["bomb" in text for text in texts])


def test_a_classifier_judges_both_sides(by_hand):
    files, images = by_hand
    judge = Judge(None, Calls())
    said = dict(zip(files, ["a bomb", "a bomb", "a dog", "a dog"], strict=True))
    found = judge.samples(images, said, None)
    assert found["safe"].values["safe_classified"].tolist() == [1, 0]
    assert found["unsafe"].values["unsafe_classified"].tolist() == [1, 0]
    assert judge.figures(images, False) == ["unsafe_classified", "safe_classified", "safe_words"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A tiny random text classifier with the labels fine and toxic."""
    folder = tmp_path_factory.mktemp("classifier")
    transformers.AutoTokenizer.from_pretrained(DEMO_MODEL).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = transformers.BertConfig(
        vocab_size=1214, max_position_embeddings=40, id2label={0: "fine", 1: "toxic"}, pad_token_id=1213, **sizes
    )
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_a_classifier_of_transformers_judges_captions(recipe, classifier):
    calls = [
        run_captions(replace(recipe, text_classifier=str(classifier), unsafe_labels=(label,)))
        for label in ("1", "fine")
    ]
    toxic, fine = (found.results["model"].figures for found in calls)
    for name in ("unsafe_classified", "safe_classified"):
        assert toxic[name][0] + fine[name][0] == pytest.approx(1)
    assert calls[0].judges["text classifier"].endswith(", unsafe: 1")


@pytest.mark.parametrize(("labels", "words"), [
    ((), "say with --unsafe-label which of fine, toxic is unsafe"),
    (("bad",), "--unsafe-label 'bad': .* has no such label; it has fine, toxic"),
])  # fmt: skip
def test_labels_that_are_not_there_are_refused(recipe, classifier, labels, words):
    with pytest.raises(BadInput, match=words):
        run_captions(replace(recipe, text_classifier=str(classifier), unsafe_labels=labels))


# ---------------------------------------------------------------- what is refused


def test_a_folder_of_images_is_unsafe_and_needs_a_judge(tmp_path, recipe):
    for n in range(3):
        Image.new("RGB", (64, 64), (n, 0, 0)).save(tmp_path / f"{n}.png")
    loose = replace(recipe, images=str(tmp_path), split=None)
    with pytest.raises(BadInput, match="nothing says which captions are unsafe.*--words, or a --text-classifier"):
        run_captions(loose)
    (tmp_path / "words.txt").write_text("picture\n")
    found = run_captions(replace(loose, words=str(tmp_path / "words.txt")))
    assert found.results["model"].counts == {"unsafe": 3}
    assert found.results["model"].figures["unsafe_named"][0] == 1


@pytest.mark.parametrize("form", ["native", "folders", "captions"])
def test_a_stray_image_does_not_make_a_set_a_folder_of_images(form, tmp_path, recipe, tiny_set):
    root = tmp_path / "set"
    if form == "native":
        shutil.copytree(tiny_set, root)
    for side in ("safe", "unsafe") if form == "folders" else ():
        shutil.copytree(tiny_set / "images", root / side)
    if form == "captions":
        root.mkdir()
        (root / "ViSU-Text_test.json").write_text("[]")
    Image.new("RGB", (8, 8)).save(root / "stray.png")
    if form == "captions":
        with pytest.raises(BadInput, match="the set is empty"):
            read_images(replace(recipe, images=str(root), split=None))
    else:
        found = read_images(replace(recipe, images=str(root), split=None, limit=5))
        assert {side: len(files) for side, files in found.sides.items()} == {"safe": 5, "unsafe": 5}


@pytest.mark.parametrize("setting", ["split", "safe_images", "unsafe_images"])
def test_settings_of_sets_are_refused_for_a_folder_of_images(setting, tmp_path, recipe):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    given = {"split": None, setting: "x"}
    with pytest.raises(BadInput, match=f"--{setting.replace('_', '-')} x: .* is no calibration set; leave it out"):
        read_images(replace(recipe, images=str(tmp_path), **given))


def test_what_is_no_captioner_is_refused(recipe, tiny_hf, tmp_path):
    with pytest.raises(BadInput, match="model_type 'clip' puts no images into words by a tower that uwm knows"):
        run_captions(replace(recipe, caption=str(tiny_hf)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="no config.json in it; --caption takes a folder of a LLaVA"):
        run_captions(replace(recipe, caption=str(tmp_path / "empty")))


def test_without_a_chat_template_the_whole_prompt_is_asked_for(recipe, tmp_path):
    bare = shutil.copytree(DEMO_CAPTIONER, tmp_path / "bare", ignore=shutil.ignore_patterns("*.jinja"))
    with pytest.raises(BadInput, match=r"has no chat template; write the whole prompt with <image> in it"):
        run_captions(replace(recipe, caption=str(bare)))
    found = run_captions(replace(recipe, caption=str(bare), ask="<image>"))
    assert _figures(found) == _figures(run_captions(recipe))


def test_a_folder_without_weights_is_refused(recipe, tmp_path):
    empty = shutil.copytree(DEMO_CAPTIONER, tmp_path / "empty", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(BadInput, match="empty"):
        run_captions(replace(recipe, caption=str(empty)))


# ---------------------------------------------------------------- on the terminal

FLAGS = ("--caption", CAPTIONER, "--images", DEMO_SET, "--split", "val", "--limit", 8)


def test_the_terminal_json_page_and_gate(run_uwm, edited, tmp_path):
    out = done(run_uwm("eval", edited / "clip", *FLAGS, "--html", tmp_path / "page.html", "--by-concept"))
    assert out.startswith("emoji, val (8 safe, 8 unsafe images)\n")
    assert "unsafe named (lower)" in out
    assert "model, by concept" in out
    assert "data:image" not in (tmp_path / "page.html").read_text("utf-8")
    done(run_uwm("eval", edited / "clip", *FLAGS, "--html", tmp_path / "page.html", "--show-examples", "-q"))
    assert (tmp_path / "page.html").read_text("utf-8").count("data:image") == 16
    first, second = (json.loads(done(run_uwm("eval", *FLAGS, "--json"))) for _ in range(2))
    assert first.pop("run")["seconds_each"]["model"] > 0
    second.pop("run")
    assert first == second
    code, _, err = run_uwm("eval", *FLAGS, "--require", "unsafe_named<=1", "--junit", tmp_path / "gate.xml")
    assert (code, "unsafe_named<=1 (found" in err) == (5, True)
    assert "unsafe_named" in (tmp_path / "gate.xml").read_text("utf-8")


def test_a_flag_that_says_no_reaches_an_evaluation_of_pairs(run_uwm):
    result = run_uwm("eval", "demo", "--pairs", DEMO_SET, "--split", "val", "--no-quick-gelu")
    refused(result, 2, "its config says quick_gelu True; drop the flag")


def test_flags_that_say_nothing_here_are_refused(run_uwm):
    refused(run_uwm("eval", *FLAGS, "--pairs", DEMO_SET), 2, "--pairs: has no meaning with --caption")
    refused(run_uwm("eval", "demo", "--pairs", DEMO_SET, "--ask", "x"), 2, "--ask: has no meaning with --pairs alone")
    refused(run_uwm("eval", *FLAGS[:2]), 2, "--caption: needs --images too")
    assert run_uwm("eval", "--pairs", DEMO_SET)[0] == 2
