"""Embeddings, figures and zero-shot accuracy of a real tiny model."""

from __future__ import annotations

import shutil

import pytest
import torch

import uwm
from uwm.errors import BadInput
from uwm.evaluate import embed, zero_shot
from uwm.gate import parse_requirement


@pytest.fixture(scope="module")
def model(tiny_hf):
    return uwm.load(tiny_hf)


def test_rows_do_not_depend_on_the_batch_size(model, tiny_set):
    calib = uwm.read_calibration(tiny_set)
    one, many = embed(model, calib, batch_size=1), embed(model, calib, batch_size=7)
    for name in ("safe_text", "unsafe_text", "safe_image", "unsafe_image"):
        torch.testing.assert_close(getattr(one, name), getattr(many, name), rtol=1e-4, atol=1e-5)


def test_figures_are_those_of_the_embeddings(model, tiny_set):
    calib = uwm.read_calibration(tiny_set)
    result, e = uwm.evaluate(model, calib), embed(model, calib)
    expected = uwm.metrics.safeground(e.safe_text, e.unsafe_text, e.safe_image, e.unsafe_image)
    assert {name: result.figures[name][0] for name in expected} == pytest.approx(expected)
    assert result.figures["R1_ts_vs"][0] == pytest.approx(uwm.metrics.recall(e.safe_text, e.safe_image)[1])
    union = uwm.metrics.union_recall(e.unsafe_image, e.safe_text, e.unsafe_text)
    assert result.figures["R1_vu_union"][0] == pytest.approx(union[1])
    assert all(low <= mean <= high for mean, low, high in result.figures.values())
    assert result.pairs == 24


@pytest.fixture
def classes(tiny_set, tmp_path):
    """Three classes of two pictures each, in ImageFolder form."""
    for i, name in enumerate(("dog", "cat", "knife")):
        (tmp_path / "set" / f"{i}_{name}").mkdir(parents=True)
        for n in range(2):
            shutil.copy(tiny_set / "images" / f"{i * 2 + n:04d}_safe.png", tmp_path / "set" / f"{i}_{name}")
    (tmp_path / "set" / "classnames.txt").write_text("dog\ncat\nknife\n")
    (tmp_path / "unsafe_classes.txt").write_text("knife\n")
    return tmp_path / "set"


def test_zero_shot_by_hand(model, classes):
    (classes / "templates.txt").write_text("a picture of a {}\n")
    with torch.no_grad():
        texts = model.encode_text(*model.tokenize([f"a picture of a {n}" for n in ("dog", "cat", "knife")]))
        right = []
        for target, folder in enumerate(sorted(p for p in classes.iterdir() if p.is_dir())):
            for path in sorted(folder.iterdir()):
                from uwm.images import load_image

                image = model.encode_image(model.preprocess([load_image(path)]))
                right.append(float(torch.cosine_similarity(image, texts).argmax() == target))
    found = zero_shot(model, classes, batch_size=4)
    assert found["top1"] == pytest.approx(sum(right) / 6)
    assert found["top1_safe"] == pytest.approx(sum(right[:4]) / 4)
    assert found["top1_unsafe"] == pytest.approx(sum(right[4:]) / 2)


def test_a_side_without_classes_has_no_figure(model, classes):
    (classes.parent / "unsafe_classes.txt").write_text("nothing here\n")
    assert set(zero_shot(model, classes)) == {"top1", "top1_safe"}


def test_zero_shot_folder_of_the_wrong_form(model, classes, tmp_path):
    (classes / "classnames.txt").write_text("dog\ncat\n")
    with pytest.raises(BadInput, match="2 names for 3 class folders"):
        zero_shot(model, classes)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"needs classnames\.txt"):
        zero_shot(model, tmp_path / "empty")


def test_requirements(model, tiny_set):
    result = uwm.evaluate(model, uwm.read_calibration(tiny_set))
    found = 100 * result.figures["P_ts"][0]
    assert parse_requirement("P_ts>=0", False).check(result, None) == {
        "requirement": "P_ts>=0",
        "found": found,
        "met": True,
    }
    assert not parse_requirement("P_ts >= 100.5", False).check(result, None)["met"]
    assert parse_requirement("P_ts>=-2%", True).check(result, result) == {
        "requirement": "P_ts>=-2%",
        "found": 0,
        "met": True,
    }
    with pytest.raises(BadInput, match="no figure 'nonsense'"):
        parse_requirement("nonsense>=1", False).check(result, None)
    for text in ("GS=4", "GS>=", "GS>=4.5%"):
        with pytest.raises(BadInput, match="--require"):
            parse_requirement(text, False)
