"""A pass that several processes share gives the sums of one process bit for bit."""

from __future__ import annotations

import pytest
import torch
from processes.threads import together

import uwm
from uwm.embedding import embed
from uwm.errors import BadInput
from uwm.statistics.batches import PairBatch, UnmadeBatch, pair_batches, preserved_batches
from uwm.statistics.channel_norms import ChannelNorms
from uwm.statistics.embeddings import PairEmbeddings
from uwm.statistics.gradients import GradientSums, gradients
from uwm.statistics.keys import InputKeys
from uwm.statistics.moments import InputMoments
from uwm.statistics.passes import Shared, run_pass
from uwm.statistics.pooled import PooledInputs
from uwm.statistics.readout import Readout
from uwm.statistics.residuals import ResidualMeans, ResidualShifts
from uwm.weights import WeightId

SIZE = 5  # of 24 pairs: batches do not come out even
FC2 = [WeightId("text", 1, "fc2"), WeightId("vision", 2, "fc2")]
BLOCKS = [("text", 1), ("vision", 2)]


class Fed:
    """A scorer that keeps what it is fed."""

    def __init__(self):
        self.kept = []

    def update(self, safe, unsafe):
        self.kept += [part.clone() for side in (safe, unsafe) for part in (side.norm, side.std, side.tokens)]


def everything(model):
    """Every reducer, and a function that gives all tensors that it holds."""
    scorers = {weight: Fed() for weight in FC2}
    reducers = [
        ChannelNorms(scorers),
        PairEmbeddings(),
        InputKeys(),
        InputMoments(FC2),
        PooledInputs(model, FC2),
        ResidualMeans(BLOCKS),
        ResidualShifts(FC2),
        Readout(model, {weight.tower: weight for weight in FC2}),
    ]

    def held():
        _, embeddings, keys, moments, pooled, means, shifts, readout = reducers
        found = [tensor for scorer in scorers.values() for tensor in scorer.kept]
        found += [side for tower in ("text", "vision") for side in embeddings.sides(tower)]
        found += [torch.tensor([*key]) for tower in ("text", "vision") for side in keys.sides(tower) for key in side]
        found += [tensor for one in moments.moments.values() for tensor in (one.mean, one.second)]
        found += [side for weight in FC2 for side in pooled.sides(weight)]
        found += [one.mean for one in means.means.values()]
        found += [one.second for one in shifts.safe.values()] + [one.cross for one in shifts.unsafe.values()]
        found += [readout.jacobian(tower) for tower in ("text", "vision")]
        return [*found, torch.tensor([readout.norm(tower) for tower in ("text", "vision")])]

    return reducers, held


@pytest.mark.parametrize("count", [2, 3])
def test_every_reducer_holds_the_same_bits_in_every_process(count, tiny_hf, tiny_set):
    def work(rank):
        model, calibration = uwm.load(tiny_hf), uwm.read_calibration(tiny_set)
        reducers, held = everything(model)
        batches = pair_batches(model, calibration, batch_size=SIZE, towers=["text", "vision"])
        seen = run_pass(model, batches, reducers, ["text", "vision"])
        return seen, held()

    seen, alone = work(0)
    assert seen == {"text": 24, "vision": 24}
    for own, found in together(count, work):
        assert own == seen
        assert len(found) == len(alone)
        assert all(torch.equal(a, b) for a, b in zip(found, alone, strict=True))


def test_no_process_reads_the_batches_of_another(tiny_hf, tiny_set):
    def work(rank):
        model, calibration = uwm.load(tiny_hf), uwm.read_calibration(tiny_set)
        kept = uwm.calibration.Preservation(
            tuple(p.safe_text for p in calibration.pairs), calibration_images(calibration)
        )
        batches = [*pair_batches(model, calibration, batch_size=SIZE, towers=["text", "vision"])]
        batches += preserved_batches(model, kept, batch_size=SIZE, towers=["text", "vision"])
        return [(isinstance(batch, UnmadeBatch), batch.pairs("text"), batch.pairs("vision")) for batch in batches]

    first, second = together(2, work)
    sizes = [5, 5, 5, 5, 4]
    counts = [(size, size) for size in sizes] * 2
    assert [one[1:] for one in first] == [one[1:] for one in second] == counts
    assert [one[0] for one in first] == [n % 2 == 1 for n in range(5)] * 2
    assert [one[0] for one in second] == [n % 2 == 0 for n in range(5)] * 2


def test_a_batch_of_another_process_is_read_once_if_at_all(tiny_hf, tiny_set, monkeypatch):
    def work(rank):
        model, read = uwm.load(tiny_hf), []
        monkeypatch.setattr(model, "preprocess", lambda images: read.append(len(images)) or preprocess(images))
        batches = [*pair_batches(model, uwm.read_calibration(tiny_set), batch_size=SIZE, towers=["text", "vision"])]
        before = sum(read)
        for batch in batches:
            if isinstance(batch, UnmadeBatch):
                assert len(batch.sides("vision")) == len(batch.sides("text")) == 2
        return before, sum(read)

    preprocess = uwm.load(tiny_hf).preprocess
    assert together(2, work) == [(2 * 14, 2 * 24), (2 * 10, 2 * 24)]


def calibration_images(calibration):
    return tuple(pair.safe_image for pair in calibration.pairs)


class Foreign:
    """A plug-in's reducer that knows nothing of several processes."""

    def __init__(self):
        self.sums = []

    def layers(self, tower):
        return [weight for weight in FC2 if weight.tower == tower]

    def take(self, weight, side, x, mask):
        self.sums.append(x.double().sum())

    def update(self, part):
        self.sums.append(part.embeddings[0].double().sum())


def test_a_reducer_that_cannot_be_shared_sees_all_batches_in_every_process(tiny_hf, tiny_set):
    def work(rank):
        model, foreign = uwm.load(tiny_hf), Foreign()
        batches = pair_batches(model, uwm.read_calibration(tiny_set), batch_size=SIZE, towers=["text", "vision"])
        run_pass(model, batches, [foreign, PairEmbeddings()], ["text", "vision"])
        return torch.stack(foreign.sums)

    alone = work(0)
    assert not isinstance(Foreign(), Shared)
    assert all(torch.equal(found, alone) for found in together(2, work))


def test_gradients_are_the_same_bits(tiny_hf, tiny_set):
    from uwm.editing.entries.gradients import grad_unsafe

    def work(rank):
        model = uwm.load(tiny_hf)
        batches = pair_batches(
            model, uwm.read_calibration(tiny_set), batch_size=SIZE, towers=["text", "vision"], joint=True
        )
        sums = GradientSums(FC2)
        gradients(model, batches, sums, grad_unsafe)
        return sums.means(), sums.pairs

    alone, pairs = work(0)
    for found, seen in together(2, work):
        assert seen == pairs
        assert all(torch.equal(found[weight], alone[weight]) for weight in FC2)


def test_what_one_process_finds_wrong_all_of_them_raise(tiny_hf, tiny_set):
    def work(rank):
        model = uwm.load(tiny_hf)
        batches = [*pair_batches(model, uwm.read_calibration(tiny_set), batch_size=SIZE, towers=["text"])]
        safe = [
            PairBatch(safe_input_ids=b.sides("text")[0][0], safe_attention_mask=b.sides("text")[0][1]) for b in batches
        ]
        run_pass(model, [*batches[:3], safe[3], *batches[4:]], [ChannelNorms({FC2[0]: Fed()})], ["text"])

    found = together(2, work)
    assert all(isinstance(error, BadInput) and "has no unsafe side" in str(error) for error in found)


def test_embeddings_are_the_same_bits(tiny_hf, tiny_set):
    def work(rank):
        return vars(embed(uwm.load(tiny_hf), uwm.read_calibration(tiny_set), batch_size=SIZE))

    alone = work(0)
    for found in together(3, work):
        assert all(torch.equal(found[side], alone[side]) for side in alone)
