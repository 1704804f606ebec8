"""Metrics against their slow forms, their identities, ties and chunks."""

from __future__ import annotations

import math

import pytest
import torch
from reference import slow_metrics

from uwm import figures, metrics, ranks
from uwm.intervals import bootstrap, changes, shares


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
    monkeypatch.setattr(ranks, "TILE", (10, 7))
    ts, tu, vs, vu = quadruples
    found, union = metrics.recall(ts, vs), metrics.union_recall(tu, vs, vu)
    both = vs.tolist() + vu.tolist()
    for k in (1, 5, 10, 20):
        assert found[k] == pytest.approx(slow_metrics.recall(ts.tolist(), vs.tolist(), k))
        assert union[k] == pytest.approx(slow_metrics.recall(tu.tolist(), both, k))


def test_a_tie_is_worth_its_chance():
    """Three equal candidates are the first, second or third with equal probability."""
    queries, candidates = torch.eye(2)[[0, 0, 0, 1]], torch.eye(2)[[0, 0, 0, 1]]
    assert metrics.recall(queries, candidates, (1, 2, 3)) == pytest.approx(
        {1: (3 / 3 + 1) / 4, 2: (3 * 2 / 3 + 1) / 4, 3: 1}
    )


def test_a_tie_has_a_tolerance():
    near, far = torch.tensor([[1, 1e-4], [1, 0]]), torch.tensor([[1, 1e-2], [1, 0]])  # cosines 5e-9 and 5e-5 apart
    query = torch.tensor([[1.0, 1.0], [1.0, 1.0]]) * torch.tensor([1.0, 0.0])
    assert metrics.recall(query, near, (1,))[1] == 0.5
    assert metrics.safeground(query, query, near[1:].expand(2, 2), near[:1].expand(2, 2))["P_ts"] == 0
    assert metrics.recall(query[:1], far[1:].repeat(2, 1), (1,))[1] == 0.5
    assert metrics.safeground(query, query, far[1:].expand(2, 2), far[:1].expand(2, 2))["P_ts"] == 1


@pytest.mark.parametrize(("better", "tied", "partners"), [(0, 0, 1), (0, 4, 1), (2, 7, 3), (4, 30, 2), (25, 3, 1)])
def test_hits_are_the_share_of_all_orders(better, tied, partners):
    """Against the hypergeometric probability."""
    standing = ranks.Standing(*(torch.tensor([n]) for n in (better, tied, partners)))
    for k in figures.KS:
        places = min(max(k - better, 0), tied + partners)
        missed = math.comb(tied, places) / math.comb(tied + partners, places)
        assert standing.hits(k).item() == pytest.approx(1 - missed)


def test_bootstrap_holds_the_mean_and_has_the_binomial_width():
    passed = torch.arange(500) < 45
    mean, low, high = bootstrap({"x": passed}, seed=0)["x"]
    assert mean == pytest.approx(0.09)
    expected = 1.96 * (0.09 * 0.91 / 500) ** 0.5
    assert (high - low) / 2 == pytest.approx(expected, rel=0.15)
    assert bootstrap({"x": passed}, seed=0) == bootstrap({"x": passed}, seed=0)


@pytest.mark.parametrize("drawn", [1, 7 * 211, 1 << 14])  # one resample at a time, the last few fewer, all at once
def test_bootstrap_equals_the_slow_form(drawn, monkeypatch):
    """Bit for bit for values that are sums of halves, which have no rounding; the others to the last digits."""
    monkeypatch.setattr("uwm.intervals.DRAWN", drawn)
    generator = torch.Generator().manual_seed(7)
    samples = {name: torch.randint(3, (211,), generator=generator) / most for name, most in (("half", 2), ("third", 3))}
    samples |= {"passed": torch.arange(211) < 40, "all": torch.ones(211)}
    found = bootstrap(samples, seed=5, repeats=60)
    expected = slow_metrics.bootstrap({name: values.double().numpy() for name, values in samples.items()}, 5, 60)
    for name in ("half", "passed", "all"):
        assert found[name] == pytest.approx(expected[name], abs=1e-15, rel=0), name
    assert found["third"] == pytest.approx(expected["third"], rel=1e-14)


@pytest.mark.parametrize("pairs", [1, 8, 400])
def test_none_and_all_of_few_pairs_are_not_certain(pairs):
    samples = {"none": torch.zeros(pairs), "all": torch.ones(pairs) > 0, "one": torch.arange(pairs) < 1}
    found = shares(samples, seed=0)
    assert found["none"][:2] == (0, 0)
    assert (1 - found["none"][2]) ** pairs == pytest.approx(0.025)  # seen with the probability that 95 % leave out
    assert found["all"] == pytest.approx((1, 1 - found["none"][2], 1))
    if pairs > 1:
        assert found["one"] == bootstrap(samples, seed=0)["one"]


def test_retrieval_equals_the_slow_forms_across_tiles(quadruples, monkeypatch):
    monkeypatch.setattr(ranks, "TILE", (10, 7))
    monkeypatch.setattr(metrics, "PIECE", 4)
    monkeypatch.setattr(ranks, "PIECE", 4)
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
    assert (*figures.SAFEGROUND, *found, *figures.MEANS) == figures.PAIRED
    assert found == pytest.approx(expected)
    assert 0 < found["unsafe_top1_tu"] < 1


def test_means_equal_the_slow_form_query_by_query(quadruples):
    samples = metrics.safeground_samples(*quadruples) | metrics.retrieval_samples(*quadruples)
    samples["unsafe_top1_tu"] = torch.arange(len(samples["PU"])) % 3 / 2  # of all combinations with PU
    found, expected = metrics.with_means(samples), slow_metrics.with_means(samples)
    assert [*found] == [*figures.PAIRED]
    for name, values in found.items():
        assert values.dtype == torch.float64
        assert values.tolist() == pytest.approx(expected[name]), name
    assert len(found["safety"].unique()) > 3


@pytest.mark.parametrize("tile", [(5, 3), (64, 64), (7, 1000)])
def test_ranks_are_exact_whatever_the_tiles(tile, monkeypatch):
    """Candidates equal to the target or within float32 rounding of it, which float32 products order by chance."""
    monkeypatch.setattr(ranks, "TILE", tile)
    monkeypatch.setattr(ranks, "TIE", 1e-9)
    generator = torch.Generator().manual_seed(1)
    queries, target = torch.randn(40, 33, generator=generator), torch.randn(33, generator=generator)
    near = target + 1e-6 * torch.randn(150, 33, generator=generator)
    candidates = torch.cat([near, target.expand(60, -1)])[torch.randperm(210, generator=generator)]
    targets = torch.arange(40) * 5
    exact = torch.nn.functional.normalize(queries.double()) @ torch.nn.functional.normalize(candidates.double()).T
    gap = exact - exact.gather(1, targets[:, None])
    found = ranks.standing_of(ranks.Part(queries), ranks.Part(candidates), (torch.arange(40), targets))
    assert found.better.tolist() == (gap > 1e-9).sum(1).tolist()
    assert found.tied.tolist() == ((gap.abs() <= 1e-9).sum(1) - 1).tolist()
    assert found.better.min() < 20
    assert found.better.max() > 150
    assert found.tied.max() > 50


def test_equal_embeddings_are_found_by_chance():
    same = torch.randn(1, 48, generator=torch.Generator().manual_seed(2)).expand(101, -1)
    same = same + 1e-7 * torch.randn(101, 48, generator=torch.Generator().manual_seed(3))
    samples = metrics.retrieval_samples(same, same, same, same)
    assert samples["R1_ts_vs"].tolist() == pytest.approx([1 / 101] * 101)
    assert samples["R10_tu_union"].tolist() == pytest.approx([10 / 202] * 101)
    assert samples["unsafe_top1_tu"].all()  # a tie is not safe
    assert not any(metrics.safeground(same, same, same, same).values())


def grouped(n, generator):
    """Rows that share items in every way: names of each side's items, and of the groups."""
    names = [torch.randint(0, n // 2, (n,), generator=generator) for _ in range(4)]
    groups = [names[2].clone(), names[3].clone()]
    for group in groups:
        group[: n // 4] = 1000 + torch.arange(n // 4) // 3  # pairs that name their group
    return metrics.Items(*names, *groups)


@pytest.mark.parametrize("tile", [(5, 3), (1000, 1000)])
def test_items_and_groups_equal_the_slow_form(tile, monkeypatch):
    monkeypatch.setattr(ranks, "TILE", tile)
    generator = torch.Generator().manual_seed(8)
    items = grouped(40, generator)
    sides = ("safe_text", "unsafe_text", "safe_image", "unsafe_image")
    ts, tu, vs, vu = (torch.randn(40, 5, generator=generator)[getattr(items, side)] for side in sides)
    found = metrics.retrieval_samples(ts, tu, vs, vu, items)

    def distinct(rows, names):
        return [*dict(zip(names.tolist(), rows.tolist(), strict=True)).values()]

    cases = {
        "ts_vs": (ts, items.safe_text, items.safe_group, vs, items.safe_image, []),
        "vs_ts": (vs, items.safe_image, items.safe_group, ts, items.safe_text, []),
        "tu_union": (tu, items.unsafe_text, items.safe_group, vs, items.safe_image, distinct(vu, items.unsafe_image)),
        "vu_union": (vu, items.unsafe_image, items.unsafe_group, ts, items.safe_text, distinct(tu, items.unsafe_text)),
    }
    for name, (query, own, group, safe, item, others) in cases.items():
        lists = (query.tolist(), own.tolist(), group.tolist(), safe.tolist(), item.tolist())
        for k in (1, 5):
            assert found[f"R{k}_{name}"].tolist() == pytest.approx(slow_metrics.grouped_hits(*lists, others, k)), name


def test_a_query_without_direction_comes_last(quadruples):
    ts, tu, vs, vu = quadruples
    ts, vu = ts.clone(), vu.clone()
    ts[3], vu[4] = torch.nan, torch.nan
    samples = metrics.retrieval_samples(ts, tu, vs, vu)
    assert not any(samples[f"R{k}_ts_vs"][3] for k in figures.KS)
    assert not samples["R20_vs_ts"][3]
    assert not samples["R20_vu_union"][4]
    assert samples["unsafe_top1_vu"][4]


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


@pytest.mark.parametrize("pairs", [60, 100, 400])
def test_few_changes_that_may_be_chance_have_an_interval_with_0(pairs):
    """Four gained and none lost: p = 0.125; six: p = 0.031."""
    ends = {}
    for gained in (0, 1, 4, 6):
        change = torch.zeros(pairs)
        change[:gained] = 1
        _, ends[gained], high = changes({"GS": change}, seed=0)["GS"]
        assert high > gained / pairs + 1 - 0.025 ** (1 / pairs) - 1e-6
    assert ends[4] == 0 < ends[6]


def test_a_query_that_is_lost_makes_the_low_end_lower():
    low = {}
    for lost in (0, 1, 2):
        change = torch.zeros(300)
        change[:lost] = -1
        low[lost] = changes({"GS": change}, seed=0)["GS"][1]
    assert low[2] < low[1] < low[0] < 0
