"""Ranks against the plain form, bit for bit; how many products they take; what is copied."""

from __future__ import annotations

import math

import pytest
import torch
from reference import slow_retrieval

from uwm import metrics, ranks
from uwm.metrics import Items, Retrieval

SIDES = ("safe_text", "unsafe_text", "safe_image", "unsafe_image")
N, DIM = 61, 24


def drawn(kind, generator):
    """Embeddings of each side, [N, DIM]."""

    def normal(rows=N):
        return torch.randn(rows, DIM, generator=generator)

    def some(rows):
        return torch.randint(rows, (N,), generator=generator)

    if kind == "tied":  # equal up to their length, on all sides
        shared = normal(7)
        return {side: shared[some(7)] * (1 + some(3)[:, None]) for side in SIDES}
    if kind in ("collapsed", "nearly collapsed"):
        middle, width = normal(1), 1e-7 if kind == "collapsed" else 1e-3
        return {side: middle + width * normal() for side in SIDES}
    found = {side: normal() for side in SIDES}
    if kind == "duplicates":
        found = {side: rows[some(N // 4)] for side, rows in found.items()}
    if kind == "normalised":
        found = {side: torch.nn.functional.normalize(rows, dim=1) for side, rows in found.items()}
    if kind == "no numbers":
        for rows in found.values():
            rows[some(N)[:2]] = math.nan
    if kind == "no direction":
        for rows in found.values():
            rows[some(N)[:2]] = 0
            rows[3] = math.inf
    return found


KINDS = ("random", "tied", "duplicates", "normalised", "collapsed", "nearly collapsed", "no numbers", "no direction")

TILES = ((1024, 1024), (7, 5), (20, 61))
CASES = [(kind, tile) for kind in KINDS for tile in TILES[: 1 if kind.startswith("no ") else 3]]  # NaN hides its tile


@pytest.fixture(params=["rows of their own", "shared items"])
def items(request):
    if request.param == "rows of their own":
        return Items.one_to_one(N)
    generator = torch.Generator().manual_seed(3)
    numbers = [torch.randint(most, (N,), generator=generator) for most in (30, 30, 20, 30, 20, 20)]
    return Items(*numbers)


@pytest.mark.parametrize(("kind", "tile"), CASES)
def test_samples_equal_the_plain_form_bit_for_bit(kind, tile, items, monkeypatch):
    monkeypatch.setattr(ranks, "TILE", tile)
    monkeypatch.setattr(ranks, "PIECE", 16)
    generator = torch.Generator().manual_seed(4)
    found = {side: rows[getattr(items, side)] for side, rows in drawn(kind, generator).items()}
    for asking in (None, torch.arange(N), torch.tensor([60, 2, 3, 3, 17, 9])):
        samples, expected = Retrieval(items, asking).samples(found), slow_retrieval.retrieval(items, found, asking)
        assert [*samples] == [*expected]
        assert [name for name in samples if not samples[name].equal(expected[name])] == []


@pytest.mark.parametrize(("asking", "products"), [(None, 4), (torch.arange(N), 4), (torch.arange(9), 6)])
def test_a_product_of_two_sides_serves_both_directions(asking, products, monkeypatch):
    shapes, multiply = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, out: shapes.append(out.shape) or multiply(a, b, out=out))
    Retrieval(Items.one_to_one(N), asking).samples(drawn("random", torch.Generator().manual_seed(0)))
    assert len(shapes) == products


def test_only_what_is_near_is_computed_in_float64(monkeypatch):
    """A tie of two candidates costs two rows, whatever the number of the others."""
    seen, exactly = [], ranks.Part.exact
    monkeypatch.setattr(ranks.Part, "exact", lambda part, which: seen.append(len(which)) or exactly(part, which))
    embeddings = drawn("random", torch.Generator().manual_seed(0))
    retrieval = Retrieval(Items.one_to_one(N))
    retrieval.samples(embeddings)
    few = sum(seen)
    embeddings["safe_image"][9] = embeddings["safe_image"][4]
    seen.clear()
    assert retrieval.samples(embeddings)["R1_ts_vs"][4] <= 0.5
    assert few < sum(seen) < few + 40


def test_whole_normalised_sides_are_not_copied():
    raw = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    rows = torch.nn.functional.normalize(raw, dim=1)
    assert ranks.Part(rows).unit.data_ptr() == rows.data_ptr()
    assert ranks.Part(raw).unit.equal(rows)
    assert ranks.Part(raw, torch.tensor([3, 1])).unit.equal(rows[[3, 1]])


def test_pairs_are_sorted_into_their_tiles(monkeypatch):
    monkeypatch.setattr(ranks, "TILE", (4, 3))
    pairs = (torch.tensor([0, 9, 3, 4]), torch.tensor([0, 5, 2, 2]))
    found = ranks.by_tile(pairs)
    assert {corner: [own.tolist() for own in places] for corner, places in found.items()} == {
        (0, 0): [[0, 3], [0, 2]],
        (4, 0): [[0], [2]],
        (8, 3): [[1], [2]],
    }


def test_own_similarities_do_not_depend_on_pieces(monkeypatch):
    found = drawn("random", torch.Generator().manual_seed(1))
    whole = metrics.own_similarities(**found)
    monkeypatch.setattr(metrics, "PIECE", 7)
    pieces = metrics.own_similarities(**found)
    assert all(whole[query][side].equal(pieces[query][side]) for query in whole for side in ("safe", "unsafe"))
