"""Metrics against their slow forms, their identities, ties and chunks."""

from __future__ import annotations

import pytest
import torch
from reference import slow_metrics

from uwm import figures, metrics


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
    for pair, members in figures.CONJUNCTIONS.items():
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


@pytest.mark.parametrize("pairs", [1, 8, 400])
def test_none_and_all_of_few_pairs_are_not_certain(pairs):
    samples = {"none": torch.zeros(pairs), "all": torch.ones(pairs) > 0, "one": torch.arange(pairs) < 1}
    found = metrics.shares(samples, seed=0)
    assert found["none"][:2] == (0, 0)
    assert (1 - found["none"][2]) ** pairs == pytest.approx(0.025)  # seen with the probability that 95 % leave out
    assert found["all"] == pytest.approx((1, 1 - found["none"][2], 1))
    if pairs > 1:
        assert found["one"] == metrics.bootstrap(samples, seed=0)["one"]


def test_retrieval_equals_the_slow_forms_across_tiles(quadruples, monkeypatch):
    monkeypatch.setattr(metrics, "TILE", (10, 7))
    monkeypatch.setattr(metrics, "PIECE", 4)
    ts, tu, vs, vu = (q.tolist() for q in quadruples)
    found = {name: s.double().mean().item() for name, s in metrics.retrieval_samples(*quadruples).items()}
    expected = {}
    for k in (1, 5, 10, 20):
        expected[f"R{k}_ts_vs"] = slow_metrics.recall(ts, vs, k)
        expected[f"R{k}_vs_ts"] = slow_metrics.recall(vs, ts, k)
        expected[f"R{k}_tu_union"] = slow_metrics.recall(tu, vs + vu, k)
        expected[f"R{k}_vu_union"] = slow_metrics.recall(vu, ts + tu, k)
    expected["unsafe_top1_tu"] = slow_metrics.unsafe_top1(tu, vs, vu)
    expected["unsafe_top1_vu"] = slow_metrics.unsafe_top1(vu, ts, tu)
    assert (*figures.SAFEGROUND, *found) == figures.PAIRED
    assert found == pytest.approx(expected)
    assert 0 < found["unsafe_top1_tu"] < 1


@pytest.mark.parametrize("tile", [(5, 3), (64, 64), (7, 1000)])
def test_ranks_are_exact_whatever_the_tiles(tile, monkeypatch):
    """Candidates equal to the target or within float32 rounding of it, which float32 products order by chance."""
    monkeypatch.setattr(metrics, "TILE", tile)
    generator = torch.Generator().manual_seed(1)
    queries, target = torch.randn(40, 33, generator=generator), torch.randn(33, generator=generator)
    near = target + 1e-6 * torch.randn(150, 33, generator=generator)
    candidates = torch.cat([near, target.expand(60, -1)])[torch.randperm(210, generator=generator)]
    targets = torch.arange(40) * 5
    exact = torch.nn.functional.normalize(queries.double()) @ torch.nn.functional.normalize(candidates.double()).T
    gap = exact - exact.gather(1, targets[:, None])
    expected = 1 + ((gap > 0) & (gap.abs() > 1e-14)).sum(1)
    assert metrics.ranks(queries, candidates, targets).tolist() == expected.tolist()
    assert expected.min() < 20
    assert expected.max() > 150


def test_equal_embeddings_all_rank_first():
    same = torch.randn(1, 48, generator=torch.Generator().manual_seed(2)).expand(101, -1)
    assert metrics.ranks(same, same, torch.arange(101)).unique().tolist() == [1]
    samples = metrics.retrieval_samples(same, same, same, same)
    assert samples["R1_tu_union"].all()
    assert samples["unsafe_top1_tu"].all()  # a tie is not safe


def test_a_query_without_direction_comes_last(quadruples):
    ts, tu, vs, vu = quadruples
    ts, vu = ts.clone(), vu.clone()
    ts[3], vu[4] = torch.nan, torch.nan
    samples = metrics.retrieval_samples(ts, tu, vs, vu)
    assert not any(samples[f"R{k}_ts_vs"][3] for k in figures.KS)
    assert not samples["R20_vs_ts"][3]
    assert not samples["R20_vu_union"][4]
    assert samples["unsafe_top1_vu"][4]
    assert metrics.ranks(ts, vs, torch.arange(37))[3] == 38


def test_histograms_count_every_query_with_its_own_items(quadruples):
    own = metrics.own_similarities(*quadruples)
    counted = metrics.histograms(own)
    assert [*counted] == ["ts", "tu", "vs", "vu"]
    assert torch.equal(own["vu"]["unsafe"], own["tu"]["unsafe"])
    for query, sides in own.items():
        for side, values in sides.items():
            bins = [0] * 100
            for value in values.tolist():
                bins[min(99, int((value + 1) * 50))] += 1
            assert counted[query][side] == bins
    edge = {"ts": {"safe": torch.tensor([-1.0, 1.0 + 1e-12]).double()}}
    assert [i for i, n in enumerate(metrics.histograms(edge)["ts"]["safe"]) if n] == [0, 99]
