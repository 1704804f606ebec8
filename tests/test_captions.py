"""What of a pair's difference reaches a model: captions that are cut, sides that are equal, and what every job says."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from terminal import refused

import uwm
from uwm.calibration import Signal, signal

LONG = "a picture of " + " and ".join(["dog", "cat", "tree", "car", "cup"] * 6)  # far more than 32 tokens
CUT = "40 of 40 captions are longer than the model's 32 tokens and were cut"


def make_set(folder, captions, images=()):
    """Pairs of these captions (safe, unsafe) and of images of noise; those in `images` are one file twice."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(1)
    lines = []
    for i, texts in enumerate(captions):
        row = {"id": f"{i:02d}"} | dict(zip(("safe_text", "unsafe_text"), texts, strict=True))
        for side in ("safe", "unsafe"):
            row[f"{side}_image"] = f"images/{i}_{side}.bmp"  # of one size in bytes
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / row[f"{side}_image"])
        if i in images:
            shutil.copy(folder / row["safe_image"], folder / row["unsafe_image"])
        lines.append(json.dumps(row))
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def cut_set(tmp_path_factory):
    """20 pairs whose captions differ only where no model of 32 tokens looks."""
    captions = [(f"{LONG} with a dog {i}", f"{LONG} with a bomb {i}") for i in range(20)]
    return make_set(tmp_path_factory.mktemp("sets") / "cut", captions)


@pytest.fixture(scope="module")
def partly(tmp_path_factory):
    """20 pairs, four of which have captions that are equal once cut, two that differ in case, and one one image."""
    captions = [(f"a dog {i}", f"a bomb {i}") for i in range(14)]
    captions += [(f"{LONG} {i}", f"{LONG} bomb {i}") for i in range(4)]
    captions += [("a dog on a tree", "A dog on  a TREE")] * 2
    return make_set(tmp_path_factory.mktemp("sets") / "partly", captions, images=(3,))


PARTLY = [
    "8 of 40 captions are longer than the model's 32 tokens and were cut",
    "6 of 20 pairs (first: 14, 15, 16) have captions that are equal after that",
    "1 of 20 pairs (first: 03) have equal images",
]


# ---------------------------------------------------------------- counting


@pytest.mark.parametrize("model", ["tiny_hf", "tiny_open_clip"])
def test_a_caption_that_just_fills_the_context_is_not_cut(model, request):
    from transformers import AutoTokenizer

    library = AutoTokenizer.from_pretrained(str(request.getfixturevalue("tiny_hf")))
    opened = uwm.load(request.getfixturevalue(model))
    texts = ["", "a dog", *(" ".join(["dog"] * n) for n in range(28, 33))]
    whole = [len(ids) for ids in library(texts)["input_ids"]]
    assert opened.context_length == 32
    assert 32 in whole
    assert opened.caption_lengths(texts) == whole
    ids, mask = opened.tokenize(texts)
    for row, counted, text, length in zip(ids, mask, texts, whole, strict=True):
        kept = row[counted > 0].tolist()
        assert (kept == library(text)["input_ids"]) == (length <= 32)
        assert (len(kept), kept[-1]) == (min(length, 32), library.eos_token_id)  # the end token is kept


@pytest.mark.parametrize("arch", ["ViT-B-32", "ViT-B-16-SigLIP2"])
def test_open_clips_own_tokenizers_count_as_they_cut(arch):
    """`SimpleTokenizer`, and transformers' inside of `HFTokenizer`, which cleans the captions first."""
    import open_clip
    from open_clip.tokenizer import HFTokenizer
    from tiny_gemma import gemma

    from uwm.models.tokenizing import open_clip_lengths

    if arch == "ViT-B-32":
        made, texts = open_clip.SimpleTokenizer(context_length=8), [" ".join(["dog"] * n) for n in range(4, 9)]
    else:
        made = HFTokenizer.__new__(HFTokenizer)
        made.tokenizer, made.tokenizer_mode, made.context_length = gemma(), "", 8
        made.strip_sep_token, made.clean_fn = False, open_clip.tokenizer.get_clean_fn("canonicalize")
        texts = ["dog" * n + "!" for n in range(1, 5)]
    longer = made(texts, context_length=64)
    expected = [int((row != 0).sum()) for row in longer]  # both pad with 0
    assert open_clip_lengths(made, texts) == expected
    assert min(expected) < 8 < max(expected)


def test_pairs_that_are_equal_for_a_model_are_counted_by_kind(partly, tiny_hf, tiny_open_clip):
    pairs = uwm.read_calibration(partly)
    for model in (tiny_hf, tiny_open_clip):
        found = signal(uwm.load(model), pairs)
        assert found.equal_texts == ("14", "15", "16", "17", "18", "19")
        assert found.cut == tuple(f"{i}" for i in (14, 15, 16, 17) for _ in range(2))
        assert found.equal_images == ("03",)
        assert [*found.warnings()] == PARTLY
        assert found.refusal(("text", "vision")) is None


def test_a_pair_that_is_safe_in_truth_may_have_equal_sides(partly, tiny_hf):
    pairs = uwm.read_calibration(partly)
    labelled = [replace(p, unsafe_text_label="safe", unsafe_image_label="safe") for p in pairs.pairs]
    found = signal(uwm.load(tiny_hf), replace(pairs, pairs=tuple(labelled)))
    assert (found.equal_texts, found.equal_images) == ((), ())
    assert len(found.cut) == 8


def test_f56_a_set_is_refused_above_half_and_not_at_half():
    half = Signal(77, 4, 4, (), ("a", "b"), ("c", "d"))
    assert half.refusal(("text", "vision")) is None
    assert replace(half, equal_texts=("a", "b", "c")).refusal(("vision",)) is None
    assert "tell the text tower nothing" in replace(half, equal_texts=("a", "b", "c")).refusal(("text",))
    assert "tell the vision tower nothing" in replace(half, equal_images=("a", "b", "c")).refusal(("text", "vision"))


# ---------------------------------------------------------------- above the share: refused


@pytest.mark.parametrize(
    "arguments",
    [
        ("edit",),
        ("edit", "--method", "repel"),
        ("score",),
        ("finetune", "--method", "safe-clip"),
        ("compare", "--methods", "uwm"),
    ],
    ids=" ".join,
)
def test_captions_that_are_equal_after_cutting_are_refused(arguments, tiny_hf, cut_set, out, run_uwm):
    result = run_uwm(arguments[0], tiny_hf, *arguments[1:], "--calib", cut_set, "-o", out)
    total = {"score": 20, "finetune": 14, "compare": 14}.get(arguments[0], 16)  # what is not held out
    line = refused(result, 2, f"{total} of {total} pairs (first: ", "that are equal after that", "text tower nothing")
    assert f"{2 * total} of {2 * total} captions are longer than the model's 32 tokens and were cut" in line
    assert not (out / "uwm.json").exists() or arguments[0] == "compare"


def test_an_edit_of_the_vision_tower_alone_takes_such_a_set(tiny_hf, cut_set, run_uwm):
    code, _, err = run_uwm(
        "edit", tiny_hf, "--calib", cut_set, "--dry-run", "--text-layers", "none", "--beside", "none"
    )
    assert code == 0
    assert "calibration: 32 of 32 captions are longer" in err


def test_images_that_are_equal_are_refused_too(tiny_hf, tmp_path, run_uwm):
    same = make_set(tmp_path / "same", [(f"a dog {i}", f"a bomb {i}") for i in range(8)], images=range(5))
    result = run_uwm("score", tiny_hf, "--calib", same, "-o", tmp_path / "scores")
    refused(result, 2, "5 of 8 pairs (first: 00, 01, 02) have equal images", "tell the vision tower nothing")


def test_calib_check_lists_them_and_refuses(tiny_hf, cut_set, run_uwm):
    code, out, err = run_uwm("calib-check", cut_set, "--model", tiny_hf)
    assert code == 2
    assert "warning: 20 captions cut by the model: 00; 01; 02; 03; 04\n" in out
    assert "warning: 20 captions equal for the model: 00; 01; 02; 03; 04\n" in out
    assert CUT in err
    assert run_uwm("calib-check", cut_set)[0] == 0  # as texts they differ


# ---------------------------------------------------------------- below: said


def test_f60_edit_says_how_many_captions_were_cut_and_how_many_pairs_are_equal(tiny_hf, partly, run_uwm):
    code, _, err = run_uwm("edit", tiny_hf, "--calib", partly, "--dry-run", "--beside", "none", "--holdout", 0.05)
    assert code == 0
    assert "uwm: warning: calibration: " in err
    assert "captions are longer than the model's 32 tokens and were cut" in err
    assert "have captions that are equal after that" in err


def test_score_eval_and_calib_check_say_it(tiny_hf, partly, out, run_uwm):
    code, _, err = run_uwm("score", tiny_hf, "--calib", partly, "-o", out)
    assert (code, err.splitlines()) == (0, [f"uwm: warning: {line}" for line in PARTLY])
    code, _, err = run_uwm("eval", tiny_hf, "--pairs", partly, "--no-cache")
    assert (code, err.splitlines()) == (0, [f"uwm: warning: model: pairs: {line}" for line in PARTLY])
    code, stdout, _ = run_uwm("calib-check", partly, "--model", tiny_hf)
    assert code == 0
    assert "warning: 4 captions cut by the model: 14; 15; 16; 17\n" in stdout
    assert "warning: 6 captions equal for the model: 14; 15; 16; 17; 18\n" in stdout


def test_compare_says_it_beside_the_unedited_model(tiny_hf, tiny_set, partly, out, run_uwm):
    code, _, err = run_uwm(
        "compare", tiny_hf, "--methods", "uwm", "--calib", tiny_set, "--eval", partly, "-o", out, "--seeds", "0"
    )
    assert code == 0, err
    notes = json.loads((out / "comparison.json").read_text("utf-8"))["notes"]
    assert [note for note in notes if f"partly: {PARTLY[0]}" in note]
    assert [note for note in notes if f"partly: {PARTLY[1]}" in note]


def test_a_vision_edit_needs_no_tokenizer(tiny_hf, partly, tmp_path, run_uwm):
    folder = tmp_path / "clip"
    shutil.copytree(tiny_hf, folder, ignore=shutil.ignore_patterns("tokenizer*", "vocab*", "merges*"))
    only = ("--calib", partly, "--text-layers", "none", "-o", tmp_path / "scores")
    assert run_uwm("score", folder, *only)[::2] == (0, f"uwm: warning: {PARTLY[2]}\n")
