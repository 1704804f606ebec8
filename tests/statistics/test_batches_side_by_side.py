"""A batch has captions and images, as long as there are both; each tower gets its pairs in the set's order."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

import uwm
from uwm.editing.entries.uwm import UwmScorer
from uwm.statistics import passes
from uwm.statistics.batches import DoneBatch, count_batches, pair_batches
from uwm.statistics.channel_norms import ChannelNorms
from uwm.statistics.passes import run_pass
from uwm.weights import match

TOWERS = ("text", "vision")
SIZE = 4


@pytest.fixture(scope="module")
def model(tiny_hf):
    return uwm.load(tiny_hf)


@pytest.fixture(scope="module", params=["more captions", "more images"])
def uneven(request, tiny_set):
    """A set of 24 pairs, of which every third one lacks its images, or its captions."""
    lacking = {"safe_image": None, "unsafe_image": None}
    if request.param == "more images":
        lacking = {"safe_text": None, "unsafe_text": None}
    calib = uwm.read_calibration(tiny_set)
    return replace(calib, pairs=tuple(replace(p, **lacking) if n % 3 else p for n, p in enumerate(calib.pairs)))


def sums(model, batches):
    """The scores of both towers."""
    weights = [w for tower in TOWERS for w in match("fc2", model.weights, tower)]
    scorers = {w: UwmScorer(w, model.parameter(w)) for w in weights}
    run_pass(model, batches, [ChannelNorms(scorers)], TOWERS)
    return [scorers[w].scores() for w in weights]


def test_batches_are_as_many_as_the_longer_side_needs(model, uneven):
    batches = [*pair_batches(model, uneven, batch_size=SIZE, towers=TOWERS)]
    assert len(batches) == count_batches(uneven, SIZE, TOWERS) == 6
    longer, shorter = sorted(TOWERS, key=lambda tower: -sum(batch.pairs(tower) for batch in batches))
    assert [batch.pairs(longer) for batch in batches] == [4, 4, 4, 4, 4, 4]
    assert [batch.pairs(shorter) for batch in batches] == [4, 4, 0, 0, 0, 0]


def test_scores_are_those_of_each_tower_by_itself(model, uneven):
    apart = [b for tower in TOWERS for b in pair_batches(model, uneven, batch_size=SIZE, towers=[tower])]
    assert not any(batch.pairs("text") and batch.pairs("vision") for batch in apart)
    together = pair_batches(model, uneven, batch_size=SIZE, towers=TOWERS)
    assert all(torch.equal(a, b) for a, b in zip(sums(model, apart), sums(model, together), strict=True))


def test_batches_that_are_done_are_counted_and_not_made(model, uneven):
    whole = [*pair_batches(model, uneven, batch_size=SIZE, towers=TOWERS)]
    rest = [*pair_batches(model, uneven, batch_size=SIZE, towers=TOWERS, done=2)]
    assert [isinstance(batch, DoneBatch) for batch in rest] == [True, True, False, False, False, False]
    assert [[b.pairs(t) for t in TOWERS] for b in rest] == [[b.pairs(t) for t in TOWERS] for b in whole]


class Both:
    """A reducer that sums over both towers."""

    needs_embeddings = False

    def layers(self, tower):
        return []

    def take(self, weight, side, x, mask):
        return None

    def update(self, part):
        pass


def test_towers_run_side_by_side_only_where_every_reducer_says_so(model, uneven, monkeypatch):
    told = []

    def side_by_side(device, apart):
        told.append(apart)
        return nullcontext(nullcontext)

    monkeypatch.setattr(passes, "side_by_side", side_by_side)
    batches = [*pair_batches(model, uneven, batch_size=SIZE, towers=TOWERS)][:1]
    sums(model, batches)
    run_pass(model, batches, [ChannelNorms({}), Both()], TOWERS)
    assert told == [True, False]
