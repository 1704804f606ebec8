"""`--until-stable`: pairs are given until the edit from half of them is that from all of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from processes.threads import together

import uwm
from uwm.calibration import CalibrationPair
from uwm.editing import settings, stability
from uwm.editing.changes import AddLowRank, Scale
from uwm.editing.editors import Proposal, editor_names, find_editor
from uwm.editing.making import about, gather
from uwm.editing.stability import UntilStable, check_share, overlap
from uwm.errors import BadInput
from uwm.recipe import Recipe, run
from uwm.weights import WeightId

A, B = WeightId("text", 0, "fc1"), WeightId("vision", 0, "fc2")
GRADIENTS = {"grad-unsafe", "grad-safe-clip"}


def scaled(**indices):
    names = {"a": A, "b": B}
    return Proposal({names[key]: Scale(np.array(found, np.int64)) for key, found in indices.items()})


def test_overlap_of_entries_is_jaccard_over_all_tensors():
    assert overlap(scaled(a=[0, 1, 2], b=[5]), scaled(a=[1, 2, 3], b=[5])) == 3 / 5
    assert overlap(scaled(a=[0]), scaled(b=[0])) == 0


def test_overlap_of_added_matrices_is_the_cosine_of_the_matrices():
    rng = np.random.default_rng(0)
    first, second = (AddLowRank.of(rng.standard_normal((4, 2)), rng.standard_normal((3, 2))) for _ in range(2))
    whole = [change.left @ change.right.T for change in (first, second)]
    expected = (whole[0] * whole[1]).sum() / np.linalg.norm(whole[0]) / np.linalg.norm(whole[1])
    assert overlap(Proposal({A: first}), Proposal({A: second})) == pytest.approx(expected)
    turned = AddLowRank.of(-first.left, -first.right)
    assert overlap(Proposal({A: first}), Proposal({A: turned})) == pytest.approx(1)


def test_added_matrices_are_compared_in_the_order_of_their_names():
    names = [WeightId("text", block, slot) for block in range(9) for slot in ("fc1", "fc2")]
    large = 1e16 * np.random.default_rng(0).uniform(1, 2, 9)
    sides = np.ones(len(names)), np.stack([large, -large], 1).ravel()  # in order, each sum is 0 after two
    sides[1][-2:] = 0.5, 0.25

    def proposal(values):
        return Proposal({name: AddLowRank.of([[v]], [[1]]) for name, v in zip(names, values, strict=True)})

    length = np.sqrt(len(names) * sum(value * value for value in sides[1].tolist()))
    assert overlap(*map(proposal, sides)) == pytest.approx(0.75 / length, abs=0)  # whatever the seed of Python's hashes


def test_overlap_of_detectors_is_how_little_the_auc_rises():
    def found(text, vision):
        towers = {"text": {"detector_auc": text}, "vision": {"detector_auc": vision, "penalty": 1.0}}
        return Proposal({}, report={"towers": towers})

    assert overlap(found(0.8, 0.9), found(0.85, 0.91)) == pytest.approx(0.95)
    assert overlap(found(0.8, 0.9), found(0.7, 0.9)) == 1


@pytest.fixture(scope="module")
def model(tiny_hf):
    return uwm.load(tiny_hf)


@pytest.fixture(scope="module")
def pairs(tiny_set):
    return uwm.read_calibration(tiny_set)


def until(model, name, wanted, **given):
    editor = find_editor(name)
    return UntilStable(model, editor, settings.make(editor, given), 3, wanted)


def fed(model, pairs, stable, parts):
    statistics = stable.editor.statistics(model, stable.pairs(pairs) if parts else about(pairs), stable.settings)
    used = gather(model, statistics, pairs, batch_size=5, parts=stable.parts if parts else None)
    return used, stable.editor.edit(model, statistics, stable.settings, 3)


@pytest.mark.parametrize("name", [name for name in editor_names() if name not in {*GRADIENTS, "random", "magnitude"}])
def test_the_edit_is_that_of_the_pairs_used(model, pairs, monkeypatch, name):
    monkeypatch.setattr(stability, "FIRST", 6)
    stable = until(model, name, 1e-6, **({"share": 0.5, "folds": 2} if name == "repel" else {}))
    used, found = fed(model, pairs, stable, parts=True)
    assert stable.curve[-1]["overlap"] >= 1e-6
    assert len(used) == stable.curve[-1]["pairs"] < len(pairs)
    _, expected = fed(model, used, stable, parts=False)
    assert {n: c.touched() is None or c.touched().tolist() for n, c in found.changes.items()} == {
        n: c.touched() is None or c.touched().tolist() for n, c in expected.changes.items()
    }


def test_all_pairs_are_used_where_the_edit_never_stays_the_same(model, pairs, monkeypatch):
    monkeypatch.setattr(stability, "FIRST", 4)
    stable = until(model, "uwm", 1.0, mass=0.3)
    used, _ = fed(model, pairs, stable, parts=True)
    assert {pair.id for pair in used.pairs} == {pair.id for pair in pairs.pairs}
    assert [look["pairs"] for look in stable.curve] == [4, 8, 16]  # 24 are less than twice 16
    assert [look["overlap"] is None for look in stable.curve] == [True, False, False]


class Drawn:
    """An editor whose edit stays the same in the first process only."""

    def __init__(self, rank):
        self.rank, self.edits = rank, 0

    def edit(self, model, statistics, settings, seed):
        self.edits += 1
        return scaled(a=[self.edits * self.rank])


def test_the_first_of_several_processes_decides_when_an_edit_is_stable(pairs):
    many = replace(pairs, pairs=tuple(CalibrationPair(f"{n}", "", "safe", "unsafe") for n in range(300)))

    def work(rank):
        stable = UntilStable(None, Drawn(rank), None, 0, 0.5)
        return [len(part) for part in stable.parts(many, None)], stable.curve

    assert together(2, work) == [([64, 64], [{"pairs": 64, "overlap": None}, {"pairs": 128, "overlap": 1.0}])] * 2


def test_a_job_says_how_many_pairs_were_enough(tiny_hf, tiny_set, monkeypatch):
    monkeypatch.setattr(stability, "FIRST", 4)
    recipe = Recipe(str(tiny_hf), str(tiny_set), split="calib", eval_splits=("test",), until_stable=0.01)
    done = run(recipe)
    assert done.manifest["stable"]["curve"][-1]["pairs"] == 8
    assert done.manifest["calibration"]["pairs"] == {"text": 8, "vision": 8}
    assert done.manifest["settings"]["until_stable"] == 0.01
    assert "until_stable" not in run(Recipe(str(tiny_hf), str(tiny_set), split="calib")).manifest["settings"]


def test_gradients_and_a_search_are_refused(tiny_hf, tiny_set):
    given = {"until_stable": 0.9, "holdout": 0.5}
    with pytest.raises(BadInput, match="--until-stable: grad-unsafe takes the gradients of all pairs at once"):
        run(Recipe(str(tiny_hf), str(tiny_set), method="grad-unsafe", **given))
    with pytest.raises(BadInput, match="--until-stable: --max-loss measures all pairs"):
        run(Recipe(str(tiny_hf), str(tiny_set), max_loss="2%", **given))


@pytest.mark.parametrize("wanted", [0, -1, 1.5, float("nan")])
def test_what_is_no_share_is_refused(wanted):
    with pytest.raises(BadInput, match="--until-stable .*expected a share between 0 and 1"):
        check_share(wanted)
