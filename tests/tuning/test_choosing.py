"""What is chosen: the best objective within the budget, never a destroyed model."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tuning.searches import READING, ground_of

import uwm
from uwm.errors import BadInput, InvalidResult
from uwm.shipped_files import DEMO_SET
from uwm.tuning.candidates import Candidates
from uwm.tuning.choosing import Ground, SearchRequest, choose
from uwm.tuning.defaults import QUICK
from uwm.tuning.search import Found, Search, Tried

# ---------------------------------------------------------------- a destroyed model never wins


@pytest.fixture(scope="module")
def demo():
    """The shipped model, which has knowledge to lose, on some of its pairs."""
    calib = uwm.read_calibration(DEMO_SET).split("calib").limit(24)
    return Ground.of(uwm.load("demo"), calib, None, 0, data_sets={}, batch_size=64, workers=1), calib


@pytest.fixture(scope="module")
def remembered():
    """Measured edits; both objectives look at the same ones."""
    return {}


@pytest.fixture
def remembering(remembered, monkeypatch):
    parts = Candidates.parts

    def parts_once(candidates, method, chosen):
        key = (method, *sorted(chosen.items(), key=str))
        remembered[key] = remembered.get(key) or [*parts(candidates, method, chosen)]
        yield from remembered[key]

    monkeypatch.setattr(Candidates, "parts", parts_once)


@pytest.mark.parametrize("objective", ["GS", "safety"])
@pytest.mark.usefixtures("remembering")
def test_a_destroyed_model_has_the_best_objective_and_is_not_chosen(demo, objective):
    """The magnitude control at a large mass: by safety alone it would win."""
    ground, calib = demo
    given = {"mass": 0.4, "variant": "ratio", "text_layers": "out_proj", "vision_layers": "fc2"}
    request = SearchRequest("10%", objective=objective, methods=("magnitude", "random"), given=given, trials=6)
    choice = choose(ground, request, request.criteria(calib, {}, False))
    best = max(choice.found.tried, key=lambda one: one.objective)
    assert best.method == "magnitude"
    assert best.loss > 50  # destroyed: nearly all of R@1 is lost
    before = choice.criteria.objective.value(choice.baseline)
    assert best.objective > before + 15
    assert choice.chosen.loss <= 0
    assert choice.chosen.method == "random"
    assert choice.chosen.objective < best.objective - 10
    assert all(verdict.met for verdict in choice.verdicts())
    assert {one.loss > 50 for one in choice.front} == {True, False}  # the front shows what it cost


# ---------------------------------------------------------------- which of those within the budget


@pytest.fixture(scope="module")
def tiny(tiny_hf, tiny_set):
    return ground_of(tiny_hf, tiny_set)


def chosen_of(tiny, request):
    ground, calib = tiny
    return choose(ground, request, request.criteria(calib, {}, False))


def found_of(*rows):
    """Objectives and losses as trials of null-space."""
    tried = [Tried(n, "null-space", {"weight": 1.0 + n / 100}, *row) for n, row in enumerate(rows)]
    return Found(tuple(tried), 0, 0, {}, {"null-space": len(tried)})


@pytest.fixture
def finding(monkeypatch):
    """A search that finds what it is told."""
    return lambda *rows: monkeypatch.setattr(Search, "run", lambda *_: found_of(*rows))


WISH = SearchRequest("5pt", methods=("null-space",))


def test_of_equal_objectives_the_first_is_chosen(tiny, finding):
    finding((50.0, -1.0), (60.0, 0.0), (90.0, 0.1), (60.0, -4.0), (10.0, -5.0))
    choice = chosen_of(tiny, WISH)
    assert choice.chosen.number == 1
    assert [one.number for one in choice.front] == [4, 3, 2]
    assert choice.changes.keys() == {uwm.weights.WeightId("vision", None, "proj")}
    assert choice.folds == 3
    assert choice.result.figures["safety"][1] == choice.result.figures["safety"][1]  # with intervals


def test_less_of_some_objectives_is_better(tiny, finding):
    finding((50.0, -1.0), (30.0, 0.0), (10.0, 0.1), (30.0, -4.0))
    choice = chosen_of(tiny, replace(WISH, objective="unsafe_top1"))
    assert choice.chosen.number == 1
    assert [one.number for one in choice.front] == [3, 2]


def test_where_none_stays_within_the_limit_the_nearest_is_named(tiny, finding):
    finding((50.0, 3.5), (30.0, 1.25), (10.0, 9.0))
    with pytest.raises(InvalidResult, match="each of 3 edits that were tried loses more in cross-validation") as told:
        chosen_of(tiny, WISH)
    assert "the nearest is null-space --weight 1.01" in str(told.value)


def test_where_nothing_could_be_measured_that_is_said(tiny, monkeypatch):
    monkeypatch.setattr(Search, "run", lambda *_: Found((), 7, 0, {}, {}))
    with pytest.raises(InvalidResult, match="--max-loss 5pt: none of 7 edits could be made and measured"):
        chosen_of(tiny, WISH)


# ---------------------------------------------------------------- objectives and budgets in detail


@pytest.mark.parametrize(
    ("objective", "max_loss"),
    [
        ("safety", "30pt"),
        ("unsafe_top1", "30pt"),
        ("P_tu.low", "30pt"),
        ("P_vu@death", "30pt"),
        ("P_vu@*", "30pt"),
        ("R5_ts_vs", "R10_vs_ts=30pt"),
        ("safety", "R5_ts_vs=30pt, P_ts@weapons=90pt"),
        ("safety", "R1_ts_vs.low>=-50pt"),
    ],
)
def test_the_chosen_is_the_best_of_those_that_keep_the_limit_when_measured_anew(tiny, objective, max_loss):
    request = SearchRequest(max_loss, objective=objective, methods=("repel", "null-space"), trials=7)
    ground, _ = tiny
    choice = chosen_of(tiny, request)
    search = ground.search(request, choice.criteria)
    values, within = {}, []
    for one in choice.found.tried:
        result = ground.validation.measure(search.candidates.edits(one.method, one.settings), detailed=True)
        values[one.number] = choice.criteria.objective.value(result)
        assert one.objective == pytest.approx(values[one.number])
        changes = uwm.evaluation.differences(result, ground.validation.baseline)
        if all(term.check(result, ground.validation.baseline, changes).met for term in choice.criteria.terms):
            within.append(one.number)
    best = (min if choice.criteria.lower_is_better else max)(values[number] for number in within)
    assert choice.chosen.number == min(number for number in within if values[number] == pytest.approx(best))
    assert choice.criteria.objective.value(choice.result) == pytest.approx(best)
    assert len({*values.values()}) > 1


# ---------------------------------------------------------------- what is refused, and what is left out


def test_usual_methods_are_those_with_the_given_settings(tiny):
    model = tiny[0].model
    assert [*SearchRequest("2%").spaces(model)] == [*QUICK]
    assert [*SearchRequest("2%", given={"towers": "text"}).spaces(model)] == ["redirect", "null-space", "hidden-units"]
    assert [*SearchRequest("2%", methods=("uwm", "repel", "uwm")).spaces(model)] == ["uwm", "repel"]
    with pytest.raises(
        BadInput, match=r"--mass: no method that is tried by default \(repel, redirect, null-space, hidden-units\)"
    ):
        SearchRequest("2%", given={"mass": 0.1}).spaces(model)
    with pytest.raises(BadInput, match="the method repel has no such setting"):
        SearchRequest("2%", methods=("uwm", "repel"), given={"mass": 0.1}).spaces(model)


@pytest.fixture(scope="module")
def without_projection(tiny_hf, tiny_set):
    """A ground whose model has no projection of images."""
    ground, calib = ground_of(tiny_hf, tiny_set)
    ground.model.tensors = {name: ref for name, ref in ground.model.tensors.items() if str(name) != "vision.proj"}
    return ground, calib


def test_a_usual_method_that_lacks_something_is_left_out_and_told(without_projection):
    ground, calib = without_projection
    request = SearchRequest("30pt")
    search = ground.search(request, request.criteria(calib, {}, False))
    assert [*search._spaces] == ["repel", "redirect", "hidden-units"]
    assert ground.refused == [
        "null-space is not tried: --method null-space: the vision tower has no projection to edit"
    ]
    with pytest.raises(BadInput, match="the vision tower has no projection"):
        ground.search(replace(request, methods=("null-space", "hidden-units")), request.criteria(calib, {}, False))


def test_figures_that_the_unedited_model_has_none_of_are_refused(tiny):
    ground, calib = tiny
    for objective, max_loss, message in (
        ("safety", "top1:pets=2%", "pets"), ("P_vu@nobody", "2%", "nobody"), ("preserved", "2%", "preserved"),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=message):
            SearchRequest(max_loss, objective=objective).criteria(calib, {}, False)
    zero = replace(
        ground.validation.baseline,
        figures=dict.fromkeys(ground.validation.baseline.figures, (0.0, 0.0, 0.0)),
    )
    blind = replace(ground)
    blind.__dict__["validation"] = type("Blind", (), {"baseline": zero})()
    with pytest.raises(BadInput, match="this cannot be searched for: R1_ts_vs>=-2%: the baseline's R1_ts_vs is 0"):
        blind.search(SearchRequest("2%", methods=("null-space",)), SearchRequest("2%").criteria(calib, {}, False))


def test_a_model_of_one_tower_is_refused(tiny, monkeypatch):
    ground, calib = tiny
    monkeypatch.setattr(type(ground.model), "modalities", ("text",))
    with pytest.raises(BadInput, match="a model with both towers only.* this one has only a text tower"):
        Ground.of(ground.model, calib, None, 0, **READING)
