"""Preservation sets: which forms are read, what is refused, and what an edit learns from them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from terminal import ALL_OF_CALIB, done, refused

import uwm
from uwm.calibration import Preservation, read_preservation
from uwm.editing.closed_form import repel_fit
from uwm.editing.closed_form.detector import fit_detector
from uwm.editing.closed_form.repel import Repel, RepelSettings
from uwm.editing.closed_form.repel_fit import EMBEDDINGS, INPUTS, READOUT
from uwm.editing.making import about, gather
from uwm.errors import BadInput, Refused
from uwm.images import load_image

CAPTIONS = ("a dog", "a cat and a tree")


@pytest.fixture
def text(tmp_path):
    """A text file with two captions."""
    path = tmp_path / "captions.txt"
    path.write_text("a dog\n\n  a cat and a tree \r\n")
    return path


@pytest.fixture
def images(tmp_path, tiny_set):
    """A folder of two images in sub-folders, one with a caption, and of files that are neither."""
    folder = tmp_path / "images"
    for name, source in (("b/two.PNG", "0000_safe.png"), ("a/one.png", "0001_safe.png")):
        (folder / name).parent.mkdir(parents=True)
        shutil.copy(tiny_set / "images" / source, folder / name)
    (folder / "a" / "one.txt").write_text("a dog\n")
    (folder / "a" / "notes.md").write_text("not a caption\n")
    return folder


def native(folder, *rows):
    folder.mkdir(exist_ok=True)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


# ---------------------------------------------------------------- forms


def test_a_text_with_a_caption_a_line(text):
    assert read_preservation(text) == Preservation(captions=CAPTIONS)
    assert read_preservation(str(text)) == Preservation(captions=CAPTIONS)


def test_a_byte_order_mark_is_no_part_of_the_first_caption(text):
    text.write_bytes(b"\xef\xbb\xbf" + text.read_bytes())
    assert read_preservation(text).captions == CAPTIONS


def test_a_folder_of_images_with_captions(images):
    found = read_preservation(images)
    assert found == Preservation(("a dog",), (images / "a" / "one.png", images / "b" / "two.PNG"))


def test_the_safe_sides_of_a_native_set(tmp_path, images):
    rows = (
        {"safe_text": "a dog", "unsafe_text": "a bomb"},
        {"safe_image": "a/one.png"},
        {"id": "2", "safe_text": " a cat and a tree ", "safe_image": "b/two.PNG", "unsafe_image": "not/read.png"},
        {"unsafe_text": "a skull"},
        {"safe_text": "  "},
    )
    found = read_preservation(native(images, *rows))
    assert found == Preservation(CAPTIONS, (images / "a" / "one.png", images / "b" / "two.PNG"))


def test_a_whole_calibration_set(tiny_set):
    found, pairs = read_preservation(tiny_set), uwm.read_calibration(tiny_set).pairs
    assert found.captions == tuple(pair.safe_text for pair in pairs)
    assert found.images == tuple(pair.safe_image for pair in pairs)


# ---------------------------------------------------------------- mistakes


def test_what_is_not_there(tmp_path):
    with pytest.raises(BadInput, match=r"--preserve .*/nope: no such file or folder"):
        read_preservation(tmp_path / "nope")


def test_nothing_in_it(tmp_path):
    (tmp_path / "empty.txt").write_text(" \n\n")
    for path in (tmp_path / "empty.txt", native(tmp_path / "set", {"unsafe_text": "a bomb"}), native(tmp_path / "no")):
        with pytest.raises(BadInput, match=rf"--preserve {path}: holds neither captions nor images"):
            read_preservation(path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadInput, match="holds neither captions nor images"):
        read_preservation(tmp_path / "folder")


def test_what_is_not_utf_8(tmp_path, images):
    (tmp_path / "latin1.txt").write_bytes(b"a caf\xe9\n")
    with pytest.raises(BadInput, match=r"latin1\.txt: not UTF-8 at byte 5"):
        read_preservation(tmp_path / "latin1.txt")
    (images / "a" / "one.txt").write_bytes(b"\xff")
    with pytest.raises(BadInput, match=r"one\.txt: not UTF-8 at byte 0"):
        read_preservation(images)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "pairs.jsonl:2:2: not valid JSON"),
        (b"[]", "pairs.jsonl:2: expected a JSON object, found list"),
        (b'{"safe_text": 3}', "pairs.jsonl:2: 'safe_text' is 3, expected a string"),
        (b'{"safe_text": "\\ud800"}', "half of a surrogate pair"),
        (b'{"safe_text": "a", "safe_text": "b"}', "key 'safe_text' occurs twice"),
        (b'{"safe_image": "nope.png"}', "pairs.jsonl:2: picture 'nope.png' does not exist"),
        (b"\xff", "pairs.jsonl:2: not UTF-8"),
    ],
)
def test_a_line_that_cannot_be_read(tmp_path, line, message):
    (tmp_path / "pairs.jsonl").write_bytes(b'{"safe_text": "a dog"}\n' + line + b"\n")
    with pytest.raises(BadInput, match=message):
        read_preservation(tmp_path)


@pytest.mark.parametrize("name", ["../outside.png", "/etc/hostname", "link.png", "https://example.org/a.png"])
def test_an_image_outside_of_the_folder(tmp_path, images, name):
    shutil.copy(images / "a" / "one.png", tmp_path / "outside.png")
    folder = native(tmp_path / "set", {"safe_image": name})
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(Refused, match=r"pairs\.jsonl:1: .*(outside of the set's folder|is a URL)") as caught:
        read_preservation(folder)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["link.png", "link.txt"])
def test_a_link_that_leads_out_of_a_folder_of_images(tmp_path, images, name):
    (tmp_path / "outside").write_text("a secret")
    (images / "b" / name).symlink_to(tmp_path / "outside")
    with pytest.raises(Refused, match=rf"{images}: picture 'b/{name}' lies outside of the set's folder"):
        read_preservation(images)


# ---------------------------------------------------------------- fingerprint


def test_the_fingerprint_is_of_the_content_in_order(tmp_path, text, images):
    found = read_preservation(text)
    assert found.fingerprint() == Preservation(captions=CAPTIONS).fingerprint()
    others = [replace(found, captions=captions) for captions in (CAPTIONS[::-1], CAPTIONS[:1], ("a doga cat",))]
    whole = read_preservation(images)
    others += [whole, replace(whole, images=whole.images[::-1]), replace(whole, captions=())]
    assert len({other.fingerprint() for other in (found, *others)}) == 1 + len(others)
    moved = shutil.copytree(images, tmp_path / "elsewhere")
    assert read_preservation(moved).fingerprint() == whole.fingerprint()
    shutil.copy(images / "a" / "one.png", moved / "b" / "two.PNG")
    assert read_preservation(moved).fingerprint() != whole.fingerprint()


def test_captions_and_paths_are_not_printed(images):
    assert repr(read_preservation(images)) == "Preservation()"


# ---------------------------------------------------------------- what an edit learns from them


@pytest.fixture(scope="module")
def model(tiny_hf):
    return uwm.load(tiny_hf)


def fed(model, calib, preserve=None):
    settings = RepelSettings()
    statistics = Repel().statistics(model, about(calib), settings)
    gather(model, statistics, calib, batch_size=5, preserve=preserve)
    return statistics


def test_they_reach_the_statistics_of_repel_as_further_rows_of_the_safe_side(model, tiny_set, images, text):
    calib = uwm.read_calibration(tiny_set, split="calib")
    preserve = replace(read_preservation(images), captions=CAPTIONS)
    without, with_them = fed(model, calib), fed(model, calib, preserve)
    assert with_them.pairs == without.pairs == {"text": 16, "vision": 16}
    for tower, count in (("text", 2), ("vision", 2)):
        for weight in with_them.layers[tower]:
            (rows,) = with_them.preserve[INPUTS].sides(weight)
            assert len(rows) == count
            assert without.preserve[INPUTS].sides(weight) == []
            for one, other in zip(*(s.reducers[INPUTS].sides(weight) for s in (without, with_them)), strict=True):
                assert torch.equal(one, other)
        (rows,) = with_them.preserve[EMBEDDINGS].sides(tower)
        expected = (
            model.encode_text(*model.tokenize([*CAPTIONS]))
            if tower == "text"
            else model.encode_image(model.preprocess([load_image(path) for path in preserve.images]))
        )
        torch.testing.assert_close(rows, expected.detach(), rtol=0, atol=1e-5)
        assert with_them.reducers[READOUT].norm(tower) == without.reducers[READOUT].norm(tower)


def test_the_detector_of_repel_counts_them_as_safe(model, tiny_set, images, monkeypatch):
    seen = []

    def watched(safe, unsafe, folds, *settings):
        seen.append((len(safe), len(unsafe), *map(len, folds)))
        return fit_detector(safe, unsafe, folds, *settings)

    monkeypatch.setattr(repel_fit, "fit_detector", watched)
    calib = uwm.read_calibration(tiny_set, split="calib")
    preserve = Preservation(tuple(f"a {word} by a tree" for word in "dog cat car cup".split()), (images / "a/one.png",))
    found = []
    for kept in (None, preserve):
        found.append(Repel().edit(model, fed(model, calib, kept), RepelSettings()))
    assert seen == [(16, 16, 16, 16)] * 2 + [(20, 16, 20, 16), (17, 16, 17, 16)]
    assert found[0].changes.keys() == found[1].changes.keys()
    assert found[0].report != found[1].report


def edit(run_uwm, model, calib, *flags):
    return run_uwm("edit", model, "--calib", calib, *flags, "--beside", "none", *ALL_OF_CALIB)


def test_uwm_json_tells_of_them_without_their_path(run_uwm, tiny_hf, tiny_set, tmp_path, images):
    out = tmp_path / "out"
    code, _, err = edit(run_uwm, tiny_hf, tiny_set, "--method", "repel", "--preserve", images, "-o", out, "-q")
    assert (code, err) == (0, "")
    text = (out / "uwm.json").read_text("utf-8")
    written = json.loads(text)
    assert written["settings"]["preserve"] == "images"
    assert written["preserve"] == {"captions": 1, "images": 2, "sha256": read_preservation(images).fingerprint()}
    assert str(images) not in text + (out / "README.md").read_text("utf-8") + (out / "report.html").read_text("utf-8")


@pytest.mark.parametrize("method", ["uwm", "grad-unsafe", "random", "ablate", "hidden-units"])
def test_they_are_refused_for_methods_that_do_not_use_them(run_uwm, tiny_hf, tiny_set, tmp_path, text, method):
    flags = ("--method", method, "--preserve", text, "-o", tmp_path / "out")
    refused(edit(run_uwm, tiny_hf, tiny_set, *flags), 2, "--preserve: this method does not use a preservation set")
    assert not (tmp_path / "out").exists()


def test_a_method_beside_that_uses_them_is_no_excuse(run_uwm, tiny_hf, tiny_set, text):
    flags = ("--calib", tiny_set, "--preserve", text, "--beside", "repel", "--dry-run", *ALL_OF_CALIB)
    refused(run_uwm("edit", tiny_hf, *flags), 2, "--preserve: this method does not use a preservation set")


def test_a_comparison_gives_them_to_the_methods_that_use_them(run_uwm, tiny_hf, tiny_set, tmp_path, text):
    flags = ("--calib", tiny_set, "--eval-split", "test", "--methods", "uwm,repel", "--preserve", text)
    done(run_uwm("compare", tiny_hf, *flags, "-o", tmp_path / "out"))
    written = json.loads((tmp_path / "out" / "comparison.json").read_text("utf-8"))
    assert [row["method"] for row in written["tables"]["test"]] == ["none", "uwm", "repel"]
    assert str(tmp_path) not in json.dumps(written["settings"])


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("nope", 2, "no such file or folder"),
        ("set", 3, "outside of the set's folder"),
        ("bad", 2, "1 bad image: "),
        ("latin1", 2, "not UTF-8 at byte 2"),
    ],
)
def test_mistakes_at_the_terminal(run_uwm, tiny_hf, tiny_set, tmp_path, name, code, words):
    native(tmp_path / "set", {"safe_image": "../latin1"})
    (tmp_path / "latin1").write_bytes(b"a \xe9")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "image.png").write_bytes(b"no image")
    flags = ("--method", "repel", "--preserve", tmp_path / name, "--dry-run")
    refused(edit(run_uwm, tiny_hf, tiny_set, *flags), code, words)


def test_the_output_may_not_hold_them(run_uwm, tiny_hf, tiny_set, images):
    flags = ("--method", "repel", "--preserve", images, "-o", images.parent, "--overwrite")
    refused(edit(run_uwm, tiny_hf, tiny_set, *flags), 2, "is the input itself or a folder around it")
    assert read_preservation(images).images
