"""Retrieval of some rows among all, with partners in several tiles, with ties and with NaN, against the slow form."""

from __future__ import annotations

import math

import pytest
import torch
from reference import slow_metrics

from uwm import metrics, ranks
from uwm.metrics import Items, Retrieval, retrieval_samples

SIDES = ("safe_text", "unsafe_text", "safe_image", "unsafe_image")
TILES = {"one tile": ranks.TILE, "many tiles": (5, 3), "small tiles": (2, 2)}
N = 31


@pytest.fixture(params=TILES)
def tile(request, monkeypatch):
    monkeypatch.setattr(ranks, "TILE", TILES[request.param])


def items_and_embeddings(seed, groups=6):
    """Rows that share items; a group's rows lie anywhere, so that its partners are in several tiles."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(count):
        return torch.randint(count, (N,), generator=generator)

    group, picture = numbers(groups), numbers(20)
    items = Items(numbers(24), numbers(24), picture, numbers(20), group, numbers(groups))
    drawn = [torch.randn(40, 4, generator=generator) for _ in SIDES]
    drawn[2][7], drawn[3][4], drawn[0][9] = drawn[2][3], drawn[2][3], drawn[0][2]  # ties of different items
    drawn[2][11] = 2 * drawn[2][3]
    return items, {side: rows[getattr(items, side)] for side, rows in zip(SIDES, drawn, strict=True)}


def slowly(items, found, asking):
    """The same, row by row."""
    lists = {side: rows.tolist() for side, rows in found.items()}
    expected = {}
    for name, (query, group, partner, other) in metrics.DIRECTIONS.items():
        groups, names = getattr(items, group).tolist(), getattr(items, partner).tolist()
        safe = dict(zip(names, lists[partner], strict=True))
        unsafe = (
            [] if other is None else [*dict(zip(getattr(items, other).tolist(), lists[other], strict=True)).values()]
        )
        for k in (1, 5, 10, 20):
            hits = slow_metrics.grouped_hits(lists[query], None, groups, lists[partner], names, unsafe, k)
            expected[f"R{k}_{name}"] = [hits[row] for row in asking]
        if unsafe:
            fooled = [
                float(
                    max(slow_metrics.cosine(lists[query][row], one) for one in unsafe)
                    >= max(slow_metrics.cosine(lists[query][row], one) for one in safe.values()) - ranks.TIE
                )
                for row in asking
            ]
            expected[f"unsafe_top1_{name.removesuffix('_union')}"] = fooled
    return expected


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.usefixtures("tile")
def test_some_rows_among_all_equal_the_slow_form(seed):
    items, found = items_and_embeddings(seed)
    asking = torch.tensor([30, 2, 3, 3, 17, 9])
    samples = Retrieval(items, asking).samples(found)
    expected = slowly(items, found, asking.tolist())
    assert samples.keys() == expected.keys()
    for name, values in expected.items():
        assert samples[name].tolist() == pytest.approx(values), name
    assert any(0 < value < 1 for values in samples.values() for value in values.tolist())  # ties that matter


@pytest.mark.usefixtures("tile")
def test_asking_rows_are_those_rows_of_asking_all():
    items, found = items_and_embeddings(2)
    everything = retrieval_samples(**found, items=items)
    for asking in (torch.arange(N), torch.tensor([5]), torch.tensor([29, 0, 11])):
        for name, values in Retrieval(items, asking).samples(found).items():
            assert values.equal(everything[name][asking]), name


def test_few_cut_offs_are_those_of_all():
    items, found = items_and_embeddings(3)
    everything, few = retrieval_samples(**found, items=items), Retrieval(items, ks=(1,)).samples(found)
    assert [name for name in everything if not name.startswith(("R5", "R10", "R20"))] == [*few]
    assert all(few[name].equal(everything[name]) for name in few)


@pytest.mark.usefixtures("tile")
def test_where_all_candidates_are_partners_each_is_right():
    items, found = items_and_embeddings(4, groups=1)
    samples = retrieval_samples(**found, items=items)
    for name in ("R1_ts_vs", "R1_vs_ts"):
        assert samples[name].tolist() == [1] * N
    expected = slowly(items, found, range(N))
    for name in ("R1_tu_union", "unsafe_top1_tu", "unsafe_top1_vu"):
        assert samples[name].tolist() == pytest.approx(expected[name]), name


@pytest.mark.usefixtures("tile")
def test_a_query_that_is_no_number_comes_last_and_hides_nothing_of_the_others():
    items, found = Items.one_to_one(N), items_and_embeddings(5)[1]
    clean = retrieval_samples(**found, items=items)
    found["unsafe_text"] = found["unsafe_text"].clone()
    found["unsafe_text"][4] = math.nan
    samples = retrieval_samples(**found, items=items)
    assert samples["R20_tu_union"][4] == samples["R1_tu_union"][4] == 0
    assert samples["unsafe_top1_tu"][4] == 1
    others = torch.arange(N) != 4
    for name in ("R1_tu_union", "R10_tu_union", "unsafe_top1_tu", "R5_ts_vs"):
        assert samples[name][others].equal(clean[name][others]), name
