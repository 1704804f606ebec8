"""Embeddings, figures and zero-shot accuracy of a real tiny model."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

import uwm
from uwm.errors import BadInput
from uwm.evaluate import embed, parse_requirement
from uwm.knowledge import open_data_sets, zero_shot


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


def test_zero_shot_by_name_of_the_set(model, tiny_set, tmp_path):
    for i, name in enumerate(("dog", "cat")):
        (tmp_path / "pictures" / f"{i}_{name}").mkdir(parents=True)
        shutil.copy(tiny_set / "images" / f"{i:04d}_safe.png", tmp_path / "pictures" / f"{i}_{name}")
    (tmp_path / "pictures" / "classnames.txt").write_text("dog\ncat\n")
    data_sets = open_data_sets([str(tmp_path / "pictures")])
    result = uwm.evaluate(model, uwm.read_calibration(tiny_set), data_sets=data_sets)
    expected = zero_shot(model, data_sets["pictures"])
    assert result.zero_shot == {"pictures": expected.figures}
    assert result.right["pictures"].equal(expected.right)
    assert json.loads(json.dumps(result.as_dict()))["zero_shot"] == {"pictures": expected.figures}
    assert result.as_dict().keys() == {"pairs", "figures", "zero_shot"}


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
