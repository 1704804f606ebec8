"""A search is a function of its seed and its trials, whenever it stops; what it tries is what editors accept."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import optuna
import pytest
from tuning.searches import ground_of, outcome, search_of, settings_with

from uwm.editing.changes import AddLowRank
from uwm.editing.editors import Proposal, find_editor
from uwm.errors import BadInput, InvalidResult
from uwm.tuning import search as searching
from uwm.tuning.criteria import Criteria
from uwm.tuning.search import LEADER, ROUNDS, SLOW_EVERY, Search, Tried, quiet
from uwm.tuning.space import Space
from uwm.weights import WeightId


@pytest.fixture(scope="module")
def ground_and_calib(tiny_hf, tiny_set):
    return ground_of(tiny_hf, tiny_set)


@pytest.fixture
def search(ground_and_calib):
    return lambda *args, **more: search_of(*ground_and_calib, *args, **more)


@pytest.fixture(scope="module")
def model(ground_and_calib):
    return ground_and_calib[0].model


@pytest.fixture(scope="module")
def never_stopped(ground_and_calib):
    """40 trials in one run."""
    return search_of(*ground_and_calib).run(40)


# ---------------------------------------------------------------- the same again


def test_a_search_is_decided_by_its_seed(search, never_stopped):
    assert outcome(search().run(40)) == outcome(never_stopped)
    assert len(never_stopped.tried) + never_stopped.invalid + never_stopped.stopped == 40
    assert len({one.objective for one in never_stopped.tried}) > 3
    other = search(seed=1).run(6)
    assert other.tried[0] == never_stopped.tried[0]  # the editor's own defaults
    assert other.tried[3].settings != never_stopped.tried[3].settings


def test_a_search_in_two_parts_is_one_search(search, never_stopped):
    parts = search()
    assert parts.run(20).tried == tuple(one for one in never_stopped.tried if one.number < 20)
    assert parts.done == 20
    assert outcome(parts.run(40)) == outcome(never_stopped)
    assert outcome(parts.run(10)) == outcome(never_stopped)  # there are 40


def test_a_search_of_trade_offs_goes_on_too(search, tmp_path):
    whole = search(limited=False).run(26)
    for trials in (7, 26):
        found = search(tmp_path / "journal", limited=False).run(trials)
    assert outcome(found) == outcome(whole)


def test_settings_are_read_back_from_a_journal_as_they_were(search, tmp_path):
    """None, words, whole numbers and floats."""
    given = {"methods": ("uwm", "redirect"), "given": {}}
    made = search(tmp_path / "journal", **given).run(9)
    assert outcome(search(tmp_path / "journal", **given).run(0)) == outcome(made)
    assert {type(value) for one in made.tried for value in one.settings.values()} == {type(None), str, float, int}


def test_progress_counts_what_is_left(search):
    told = []
    half = search()
    half.run(3)
    half.run(5, lambda left, total, name: told.append((total, name)) or left)
    half.run(5, lambda *_: pytest.fail("nothing is left"))
    assert told == [(2, "search")]


# ---------------------------------------------------------------- what is tried


def test_the_first_trial_of_a_method_is_its_defaults(never_stopped):
    first = {}
    for one in never_stopped.tried:
        first.setdefault(one.method, one.settings)
    assert first["hidden-units"] == {"towers": "both", "top": 0.05, "factor": 0.0}
    assert first["null-space"] == {"towers": "vision", "weight": 1.0, "rank": 5, "retain": 0}


def test_given_settings_never_change(search):
    found = search(methods=("hidden-units",), given={"top": "0.1", "towers": "text"}).run(12)
    assert all((one.settings["top"], one.settings["towers"]) == ("0.1", "text") for one in found.tried)
    assert len({one.settings["factor"] for one in found.tried}) == 12
    made = search(methods=("hidden-units",), given={"top": "0.1", "towers": "text"})
    for one in found.tried:
        result = made._validation.measure(made.candidates.edits("hidden-units", one.settings), detailed=False)
        assert made._criteria.of(result, made._validation.baseline)[0] == one.objective
    assert len({one.objective for one in found.tried}) > 1


# ---------------------------------------------------------------- invalid candidates


class Stubborn:
    """An editor every second edit of which is refused, in different ways."""

    name, title, source = "null-space", "stubborn", "made up"

    def __init__(self, whole):
        self.whole, self.count, self.Settings = whole, 0, whole.Settings

    def __getattr__(self, name):
        return getattr(self.whole, name)

    def edit(self, model, statistics, settings, seed=0):
        self.count += 1
        if settings.weight < 0.7:
            raise InvalidResult("too little")
        if settings.weight < 1:
            raise BadInput("still too little")
        if settings.weight > 1.6:
            return Proposal({WeightId("vision", None, "proj"): AddLowRank.of([[1.0]], [[1.0]])})
        return self.whole.edit(model, statistics, settings, seed)


def test_invalid_candidates_are_counted_and_not_chosen(search, tmp_path, caplog):
    journals = [tmp_path / "one", tmp_path / "two"]
    for trials in (11, 30):
        made = search(journals[0], methods=("null-space",))
        made._spaces["null-space"] = replace(made._spaces["null-space"], editor=Stubborn(find_editor("null-space")))
        with caplog.at_level(logging.INFO, "uwm"):
            found = made.run(trials)
    assert len(found.tried) + found.invalid + found.stopped == found.trials["null-space"] == 30
    assert found.invalid > 4
    assert all(1 <= one.settings["weight"] <= 1.6 for one in found.tried)
    told = "\n".join(caplog.messages)
    assert "too little" in told
    assert "the proposed change does not fit a tensor of [24, 32], or is not finite" in told
    whole = search(journals[1], methods=("null-space",))
    whole._spaces["null-space"] = replace(whole._spaces["null-space"], editor=Stubborn(find_editor("null-space")))
    assert outcome(whole.run(30)) == outcome(found)


# ---------------------------------------------------------------- which method comes next


def staged(model, names, quick, objective, limited=True):
    """A search whose editors and figures are made up: `quick` of a method, `objective` of method and number."""
    spaces = {name: Space(SimpleNamespace(name=name, Settings=settings_with(0.5)), {}, {}) for name in names}
    criteria = SimpleNamespace(
        better=lambda value: value, lower_is_better=False, limited=limited, detailed=False
    )  # fmt: skip
    counts = Counter()

    def measured(method, edits):
        counts[method] += 1
        return *objective(method, counts[method]), False

    made = Search(model, None, SimpleNamespace(), spaces, criteria, seed=0)
    made.candidates = SimpleNamespace(
        parts=lambda method, chosen: (is_quick for is_quick in [quick[method]]),
        several_processes=contextlib.nullcontext,
    )
    made._measured = measured
    return made


def order(search, trials):
    return [one.method for one in search.run(trials).tried]


def test_slow_methods_get_one_trial_in_so_many(model):
    quick = {"slow": False, "a": True, "slower": False, "b": True}
    tried = order(staged(model, quick, quick, lambda name, n: (1.0, 0.0)), 120)
    assert tried[:4] == [*quick]
    later = [number for number, name in enumerate(tried) if number > 3 and name.startswith("slow")]
    assert later == [*range(SLOW_EVERY - 1, 120, SLOW_EVERY)]
    counts = Counter(tried)
    assert abs(counts["slow"] - counts["slower"]) <= 1


def test_slow_methods_alone_take_turns(model):
    quick = {"slow": False, "slower": False}
    assert order(staged(model, quick, quick, lambda name, n: (1.0, 0.0)), 6) == ["slow", "slower"] * 3


@pytest.mark.parametrize(
    ("limited", "objective"),
    [
        (True, lambda name, n: {"a": (50.0, 0.1), "b": (40.0, -1.0 if n > 3 else 1.0), "c": (30.0, 0.0)}[name]),
        (False, lambda name, n: {"a": (50.0, 9.0), "b": (40.0 - n, 8.0 - n), "c": (1.0, 10.0)}[name]),
    ],
    ids=["the best within the budget", "the most points of the front"],
)
def test_after_some_rounds_the_leader_gets_most_trials(model, limited, objective):
    quick = dict.fromkeys("abc", True)
    tried = order(staged(model, quick, quick, objective, limited), 100)
    rounds = ROUNDS * 3
    assert tried[:rounds] == [*"abc"] * ROUNDS
    for number in range(rounds, 100):
        others = number % LEADER == 0
        assert others or tried[number] == "b"
    assert {tried[number] for number in range(rounds, 100, LEADER)} >= {"a", "c"}


def test_without_a_candidate_within_the_limit_the_nearest_leads(model):
    quick = dict.fromkeys("ab", True)
    tried = order(staged(model, quick, quick, lambda name, n: {"a": (50.0, 3.0), "b": (10.0, 2.0)}[name]), 60)
    assert Counter(tried[2 * ROUNDS :])["b"] > 25


# ---------------------------------------------------------------- what is left after a part


def test_what_is_left_after_a_part_is_no_candidate_and_is_known_again(search, tmp_path, monkeypatch):
    given = {"methods": ("hidden-units",)}
    every = search(**given).run(12)
    monkeypatch.setattr(Search, "_clearly_worse", lambda self, *_: len(self._tried) % 3 == 2)
    found = search(tmp_path / "journal", **given).run(12)
    assert (len(found.tried), found.stopped) == (2, 10)
    assert found.tried == every.tried[:2]
    assert outcome(search(tmp_path / "journal", **given).run(0)) == outcome(found)


def test_the_first_candidate_of_a_method_is_measured_whole(search, monkeypatch):
    monkeypatch.setattr(Search, "_clearly_worse", lambda *_: True)
    found = search().run(8)
    assert [one.method for one in found.tried] == ["null-space", "hidden-units"]


@pytest.mark.parametrize(
    ("limited", "tried", "objective", "loss", "certain", "expected"),
    [
        (True, (50.0, -1.0), 60.0, 9.0, -1.0, True),  # beyond the bound by more than chance
        (True, (50.0, -1.0), 60.0, 1.0, -1.0, False),
        (True, (50.0, -1.0), 40.0, -1.0, -1.0, True),  # another within it is better by more than chance
        (True, (50.0, -1.0), 49.0, -1.0, -1.0, False),
        (True, (50.0, 5.0), 60.0, 20.0, -1.0, True),  # none within; this one is further out
        (True, (50.0, 5.0), 10.0, 5.0, -1.0, False),
        (False, (50.0, 5.0), 40.0, 9.0, -1.0, True),  # dominated
        (False, (50.0, 5.0), 40.0, 5.5, -1.0, False),  # perhaps not: it may lose less
        (False, (50.0, 5.0), 40.0, 5.5, 5.0, True),  # it does not, since data sets say so
        (False, (50.0, 5.0), 60.0, 9.0, 9.0, False),
    ],
)
def test_what_is_clearly_worse(model, limited, tried, objective, loss, certain, expected):
    made = staged(model, ["a"], {"a": True}, None, limited)
    made._tried.append(Tried(0, "a", {}, *tried))
    made._validation.pairs = 600
    assert made._clearly_worse(objective, loss, certain, 200) == expected
    assert not made._clearly_worse(objective, loss, -1.0, 2) or (limited and loss > 20)  # two pairs tell little


# ---------------------------------------------------------------- Optuna's voice


def test_optuna_says_nothing_and_its_verbosity_is_restored(search, tmp_path, capfd, caplog):
    before = optuna.logging.get_verbosity()
    optuna.logging.enable_propagation()
    try:
        for verbosity in (optuna.logging.DEBUG, optuna.logging.ERROR):
            optuna.logging.set_verbosity(verbosity)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                made = search(tmp_path / "journal")
                made.run(made.done + 4)
                made._try(99, "null-space")
            assert optuna.logging.get_verbosity() == verbosity
            assert [str(one.message) for one in caught] == []
    finally:
        optuna.logging.disable_propagation()
        optuna.logging.set_verbosity(before)
    assert [one.message for one in caplog.records if one.name.startswith("optuna")] == []
    assert capfd.readouterr() == ("", "")


def test_verbosity_is_restored_when_the_body_raises():
    before = optuna.logging.get_verbosity()
    assert before != optuna.logging.WARNING
    with contextlib.suppress(KeyError), quiet():
        assert optuna.logging.get_verbosity() == optuna.logging.WARNING
        raise KeyError
    assert optuna.logging.get_verbosity() == before


# ---------------------------------------------------------------- what is aimed at


def aim_of(objective, max_loss, limited=True):
    from uwm.expressions import parse_max_loss, parse_objective

    return Criteria(parse_objective(objective), parse_max_loss(max_loss), limited)


@pytest.mark.parametrize(
    ("objective", "max_loss", "detailed"),
    [("safety", "2%", False), ("GS", "1pt", False), ("unsafe_top1", "R1_safe=1pt", False), ("GS.low", "2%", True),
     ("P_vu@death", "2%", True), ("R5_ts_vs", "2%", True), ("R10_ts_vs", "2%", True), ("safety", "R20_vs_ts=1pt", True),
     ("safety", "R1_ts_vs.low>=-2pt", True)],
)  # fmt: skip
def test_details_are_measured_where_they_are_asked_for(objective, max_loss, detailed):
    assert aim_of(objective, max_loss).detailed is detailed


def test_an_objective_of_which_less_is_better_is_turned_round():
    assert (aim_of("unsafe_top1", "2%").better(30.0), aim_of("GS", "2%").better(30.0)) == (-30.0, 30.0)
    assert aim_of("GS", "2%").label == "GS"
    assert aim_of("GS.low", "2%").label == "GS.low"


def test_a_figure_that_is_no_number_is_invalid(ground_and_calib):
    ground, _ = ground_and_calib
    means = replace(
        ground.validation.baseline,
        figures={name: (float("nan"), 0, 0) for name in ground.validation.baseline.figures},
    )
    with pytest.raises(InvalidResult, match="not a number"):
        aim_of("GS", "2pt").of(means, ground.validation.baseline)


def test_the_loss_is_how_far_the_worst_term_lies_beyond_its_bound(ground_and_calib):
    baseline = ground_and_calib[0].validation.baseline
    worse = replace(baseline, figures={**baseline.figures, "R1_ts_vs": (baseline.figures["R1_ts_vs"][0] - 0.05, 0, 0)})
    assert aim_of("GS", "2pt").of(worse, baseline)[1] == pytest.approx(3)
    assert aim_of("GS", "5pt").of(worse, baseline)[1] == 0
    assert aim_of("GS", "9pt").of(worse, baseline)[1] == pytest.approx(-4)
    assert searching._loss(SimpleNamespace(loss=2.0)) == 2
