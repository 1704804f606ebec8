"""What repel worked out for earlier settings changes nothing of what it proposes for others."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from telling_pairs import fed, telling_set, values

import uwm
from uwm.editing.closed_form.repel import EDITOR
from uwm.editing.settings import make

SETTINGS = (
    {},
    {"share": 0.05},
    {"strength": 3.0, "lean": 0.0},
    {"safe_weight": 16.0},
    {"penalty": 0.1},
    {"folds": 3},
    {"units": "concept"},
    {"units": "concept", "folds": 3, "share": 0.4},
    {"units": "concept", "safe_weight": 1.0},
)


@pytest.fixture(scope="module")
def model(tiny_hf):
    return uwm.load(tiny_hf)


@pytest.fixture(scope="module")
def statistics(model, tmp_path_factory):
    return fed(model, telling_set(tmp_path_factory.mktemp("sets") / "telling", 30))[0]


def bits(proposal):
    return {str(name): (change.indices.tolist(), values(change).tolist()) for name, change in proposal.changes.items()}


@pytest.mark.parametrize("seed", range(3))
def test_shared_work_is_that_of_the_settings_alone(model, statistics, seed):
    """Bit for bit, in any order, with other seeds and controls between."""
    shared = replace(statistics, fitted={})
    orders = [(given, draw, way) for given in SETTINGS for draw in (0, 1) for way in ("edit", "control")]
    random.Random(seed).shuffle(orders)
    for given, draw, way in orders[:14]:
        found = getattr(EDITOR, way)(model, shared, make(EDITOR, given), draw)
        alone = getattr(EDITOR, way)(model, replace(statistics, fitted={}), make(EDITOR, given), draw)
        assert bits(found) == bits(alone), (given, draw, way)
        assert (found.report, found.warnings) == (alone.report, alone.warnings)


def test_detectors_are_fitted_once_for_what_decides_them(model, statistics, monkeypatch):
    from uwm.editing.closed_form import repel_fit

    fitted, fit = [], repel_fit.fit_detector
    monkeypatch.setattr(repel_fit, "fit_detector", lambda *args: fitted.append(1) or fit(*args))
    shared = replace(statistics, fitted={})
    for given in ({}, {"share": 0.05}, {"strength": 3.0}, {"lean": 0.3}, {}):
        EDITOR.edit(model, shared, make(EDITOR, given))
    assert len(fitted) == 2  # one a tower
    EDITOR.edit(model, shared, make(EDITOR, {"safe_weight": 16.0}))
    EDITOR.edit(model, shared, make(EDITOR, {}), seed=1)
    assert len(fitted) == 6
