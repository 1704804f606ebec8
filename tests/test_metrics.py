"""Metrics against their slow forms, their identities, ties and chunks."""

from __future__ import annotations

import pytest
import torch
from reference import slow_metrics

from uwm import metrics


@pytest.fixture
def quadruples():
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(37, 6, generator=generator) for _ in range(4)]


def test_safeground_equals_the_slow_form(quadruples):
    assert metrics.safeground(*quadruples) == pytest.approx(slow_metrics.safeground(*(q.tolist() for q in quadruples)))


def test_safeground_identities(quadruples):
    ts, tu, vs, vu = quadruples
    found = metrics.safeground(ts, tu, vs, vu)
    assert found["GS"] <= min(found[name] for name in ("Txt", "Img", "PS", "PU"))
    for pair, members in metrics.GROUPS.items():
        assert all(found[pair] <= found[member] for member in members)
    swapped = metrics.safeground(tu, ts, vu, vs)
    assert swapped["P_ts"] == pytest.approx(1 - found["P_tu"])
    assert swapped["P_vs"] == pytest.approx(1 - found["P_vu"])


def test_a_tie_is_not_safe():
    same = torch.ones(3, 4)
    assert set(metrics.safeground(same, same, same, same).values()) == {0.0}


def test_recall_equals_the_slow_form_across_chunks(quadruples, monkeypatch):
    monkeypatch.setattr(metrics, "TILE", (10, 7))
    ts, tu, vs, vu = quadruples
    found, union = metrics.recall(ts, vs), metrics.union_recall(tu, vs, vu)
    both = vs.tolist() + vu.tolist()
    for k in (1, 5, 10, 20):
        assert found[k] == pytest.approx(slow_metrics.recall(ts.tolist(), vs.tolist(), k))
        assert union[k] == pytest.approx(slow_metrics.recall(tu.tolist(), both, k))


def test_a_tie_does_not_push_the_target_down():
    queries, candidates = torch.eye(2), torch.tensor([[1.0, 0], [1.0, 0], [0, 1.0]])
    assert metrics.ranks(queries, candidates, torch.tensor([1, 2])).tolist() == [1, 1]


def test_bootstrap_holds_the_mean_and_has_the_binomial_width():
    passed = torch.arange(500) < 45
    mean, low, high = metrics.bootstrap({"x": passed}, seed=0)["x"]
    assert mean == pytest.approx(0.09)
    expected = 1.96 * (0.09 * 0.91 / 500) ** 0.5
    assert (high - low) / 2 == pytest.approx(expected, rel=0.15)
    assert metrics.bootstrap({"x": passed}, seed=0) == metrics.bootstrap({"x": passed}, seed=0)
