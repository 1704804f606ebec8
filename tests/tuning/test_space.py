"""What is tried of an editor's settings is what the editor accepts, and is drawn as Optuna draws."""

from __future__ import annotations

from types import SimpleNamespace

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from tuning.searches import settings_with

import uwm
from uwm.editing import settings as settings_of
from uwm.editing.editors import Pairs, editor_names, find_editor
from uwm.editing.settings import Range
from uwm.errors import BadInput
from uwm.tuning.sampler import Sampler
from uwm.tuning.search import quiet
from uwm.tuning.space import Space


@pytest.fixture(scope="module")
def model(tiny_hf):
    return uwm.load(tiny_hf)


@pytest.mark.parametrize(
    ("given", "fixed"),
    [({"mass": 0.1}, True), ({"text_mass": 0.1}, True), ({"vision_mass": "0.1"}, True), ({"alpha": 0.0}, False)],
)
def test_a_given_mass_fixes_that_of_both_towers(model, given, fixed):
    searched = Space.of(find_editor("uwm"), given, model).searched
    assert ("mass" not in searched) == fixed
    assert not {"text_mass", "vision_mass", *given} & searched.keys()


def test_a_wrong_given_setting_is_refused(model):
    with pytest.raises(BadInput, match="--mass 7.0: expected a number between 0 and 1"):
        Space.of(find_editor("uwm"), {"mass": 7}, model)


@pytest.mark.parametrize("name", editor_names())
def test_every_value_that_is_drawn_is_one_that_the_editor_accepts(model, name):
    editor = find_editor(name)
    space = Space.of(editor, {}, model)
    assert space.searched
    ends = [{setting: value} for setting, tried in space.searched.items()
            for value in ((tried.low, tried.high) if isinstance(tried, Range) else tried)]  # fmt: skip
    with quiet():
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        drawn = [study.ask(space.distributions()).params for _ in range(40)]
    for chosen in (space.start(), *ends, *drawn):
        made = settings_of.make(editor, chosen)
        for setting, value in chosen.items():
            kind = {f: type(getattr(made, f)) for f in (setting,)}[setting]
            assert value is None or kind(value) == getattr(made, setting)
        nothing = {chosen.get("text_layers"), chosen.get("vision_layers")} == {"none"}
        if not nothing:
            editor.statistics(model, Pairs(), made)
    assert all(len({one[setting] for one in drawn}) > 1 for setting in space.searched)


def test_values_that_other_settings_rule_out_are_not_tried(model):
    assert "variant" in Space.of(find_editor("uwm"), {}, model).searched
    assert "variant" not in Space.of(find_editor("log-ratio"), {}, model).searched
    layers = Space.of(find_editor("uwm"), {}, model).searched["vision_layers"]
    assert layers == ("fc2", "out_proj", "vision.[1-2].fc2", "none")


def test_a_search_starts_only_from_values_within_its_ranges(model):
    editor = SimpleNamespace(name="made up", Settings=settings_with(default=5.0), check=lambda settings: None)
    space = Space.of(editor, {}, model)
    assert space.start() == {"inside": 0.5}
    assert space.as_dict()["searched"] == {"outside": [0, 1, False], "inside": [0, 1, False]}


def test_the_sampler_draws_what_optuna_draws_when_it_looks_for_the_settings_itself():
    space = {
        "share": FloatDistribution(0.01, 1, log=True),
        "rank": IntDistribution(1, 32),
        "layers": CategoricalDistribution(("all", "late")),
        "alone": IntDistribution(3, 3),
    }

    def values(make):
        study = optuna.create_study()
        for number in range(25):
            study.sampler = make(number)
            trial = study.ask(space)
            study.tell(trial, trial.params["share"] * trial.params["rank"] + (trial.params["layers"] == "all"))
        return [trial.params for trial in study.get_trials()]

    with quiet():
        own = values(lambda seed: Sampler(seed, space))
        assert own == values(lambda seed: optuna.samplers.TPESampler(seed=seed, multivariate=True))
    assert own != values(lambda seed: optuna.samplers.RandomSampler(seed=seed))
