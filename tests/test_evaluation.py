"""Embeddings, figures and zero-shot accuracy of a real tiny model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

import uwm
from uwm.embedding import embed, embed_tower
from uwm.errors import BadInput, InvalidResult
from uwm.evaluation import EvalResult, differences
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


def test_figures_by_concept_are_means_over_its_queries(model, tiny_set):
    calib = uwm.read_calibration(tiny_set)
    result = uwm.evaluate(model, calib)
    assert result.concept_pairs == {"death": 12, "weapons": 12}
    assert [*result.by_concept] == ["death", "weapons"]
    for concept, found in result.by_concept.items():
        rows = torch.tensor([pair.concept == concept for pair in calib.pairs])
        assert found.keys() == result.figures.keys() == result.samples.keys()
        for name, (mean, low, high) in found.items():
            assert mean == pytest.approx(result.samples[name][rows].double().mean().item())
            assert low <= mean <= high
    whole = {name: sum(found[name][0] for found in result.by_concept.values()) / 2 for name in result.figures}
    assert whole == pytest.approx({name: figure[0] for name, figure in result.figures.items()})


def test_a_set_without_concepts_has_no_figures_by_concept(model, tiny_set):
    calib = uwm.read_calibration(tiny_set)
    plain = replace(calib, pairs=tuple(replace(pair, concept="") for pair in calib.pairs))
    assert uwm.evaluate(model, plain).by_concept == {}
    mixed = replace(calib, pairs=(*plain.pairs[:3], *calib.pairs[3:]))
    assert uwm.evaluate(model, mixed).concept_pairs == {"(none)": 3, "death": 11, "weapons": 10}


def test_json_has_all_but_the_samples(model, tiny_set):
    result = uwm.evaluate(model, uwm.read_calibration(tiny_set))
    found = json.loads(json.dumps(result.as_dict()))
    assert found.keys() == vars(result).keys() - {"samples", "right", "safe", "preserved"}
    assert all(sum(counts) == 24 for sides in found["similarities"].values() for counts in sides.values())


def test_differences_query_by_query():
    before = {"GS": torch.tensor([1, 1, 0, 0, 0, 0, 0, 0]).bool()}
    now = {"GS": torch.tensor([0, 1, 1, 1, 1, 0, 0, 0]).bool()}
    results = [EvalResult(8, {}, {}, samples=samples) for samples in (now, before)]
    found = differences(*results)["GS"]
    assert (found["gained"], found["lost"]) == (3, 1)
    mean, low, high = found["difference"]
    assert mean == 2 / 8
    assert -1 <= low < mean < high <= 1
    none = differences(results[0], results[0])["GS"]
    assert (none["gained"], none["lost"], none["difference"]) == (
        0,
        0,
        pytest.approx((0, 0.025**0.125 - 1, 1 - 0.025**0.125)),
    )


def test_a_paired_interval_is_narrower_than_the_two_intervals():
    """The same 3 of 400 queries change: an unpaired comparison could not tell."""
    before = torch.arange(400) % 2 == 0
    now = before.clone()
    now[[1, 3, 5]] = True
    found = differences(*(EvalResult(400, {}, {}, samples={"GS": s}) for s in (now, before)))["GS"]
    assert found["difference"][2] - found["difference"][1] < 0.02


def test_differences_of_other_pairs_are_refused(model, tiny_set):
    result = uwm.evaluate(model, uwm.read_calibration(tiny_set))
    for other in (uwm.evaluate(model, uwm.read_calibration(tiny_set, split="test")), replace(result, samples={})):
        with pytest.raises(BadInput, match="two results of the same pairs"):
            differences(result, other)


def test_embeddings_that_are_no_numbers_are_an_invalid_result(tiny_hf, tiny_set):
    broken = uwm.load(tiny_hf)
    with torch.no_grad():
        dict(broken.module.named_parameters())["visual_projection.weight"][0] = torch.nan
    with pytest.raises(InvalidResult, match="vision tower: NaN or infinite embeddings at pair '0000'"):
        uwm.evaluate(broken, uwm.read_calibration(tiny_set))


def test_a_set_without_quadruples(model, tiny_set):
    calib = uwm.read_calibration(tiny_set)
    texts = replace(calib, pairs=tuple(replace(p, safe_image=None, unsafe_image=None) for p in calib.pairs))
    with pytest.raises(BadInput, match="no pair has both captions and images"):
        uwm.evaluate(model, texts)
    assert len(embed_tower(model, texts, "text")[0]) == 24
    assert embed_tower(model, texts, "vision") == []
