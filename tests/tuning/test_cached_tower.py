"""What is kept of the unedited model changes nothing: embeddings under an edit are those of the whole tower."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from tuning.edits_of_all_kinds import KINDS, change_of, changes_of, embedded_plainly, read, sources_of

import uwm
from uwm.editing.changes import SetEntries
from uwm.editing.editors import Proposal
from uwm.editing.live import changed
from uwm.editing.making import make_patch
from uwm.embedding import embed, quadruples
from uwm.errors import InvalidResult
from uwm.knowledge import DataSet, zero_shot
from uwm.models.kept import Kept
from uwm.statistics.hooks import kept_outputs, skipped
from uwm.tuning.cached_sets import CachedDataSets, CachedPairs
from uwm.tuning.cached_tower import CachedTower
from uwm.weights import WeightId

BATCH = 3  # of 8 inputs: the last batch is short
CLOSE = 2e-6
LATE = {  # worked out at the pooled token
    "text": ["text.1.fc1", "text.1.fc1.bias", "text.1.fc2", "text.1.fc2.bias", "text.norm", "text.norm.bias",
             "text.proj"],
    "vision": ["vision.2.fc1", "vision.2.fc1.bias", "vision.2.fc2", "vision.2.fc2.bias", "vision.norm",
               "vision.norm.bias", "vision.proj"],
}  # fmt: skip
EARLY = {
    "text": ["text.0.q_proj", "text.0.fc2.bias", "text.0.norm2", "text.1.out_proj", "text.1.norm1",
             "text.position_embedding", "text.token_embedding"],
    "vision": ["vision.0.fc1", "vision.1.v_proj", "vision.2.k_proj", "vision.2.norm2.bias", "vision.pre_norm",
               "vision.position_embedding", "vision.patch_embedding"],
}  # fmt: skip
TOWERS = ("text", "vision")
ROOMS = {"all": {"text": 1 << 30, "vision": 1 << 30}, "some": {"text": 12_000, "vision": 200_000},
         "nothing": {"text": 0, "vision": 0}}  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_hf):
    return uwm.load(tiny_hf)


@pytest.fixture(scope="module")
def pairs(tiny_set):
    return uwm.read_calibration(tiny_set, split="test")


def kept_of(model, pairs, tower, room=1 << 30):
    model.kept = Kept(room)
    return CachedTower(model, tower, sources_of(pairs, tower), batch_size=BATCH, workers=1)


def plainly(model, pairs, tower, changes):
    return embedded_plainly(model, tower, sources_of(pairs, tower), changes, BATCH)


@pytest.mark.parametrize("tower", TOWERS)
def test_late_edits_are_worked_out_at_the_pooled_token(model, pairs, tower):
    kept = kept_of(model, pairs, tower)
    assert kept.unedited.equal(plainly(model, pairs, tower, {}))
    for name in map(WeightId.parse, LATE[tower]):
        for kind in KINDS:
            changes = {name: change_of(model, name, kind)}
            if changes[name] is None:
                continue
            assert kept.is_quick(changes)
            expected = plainly(model, pairs, tower, changes)
            torch.testing.assert_close(kept.embed(changes), expected, rtol=0, atol=CLOSE, msg=str(name))
            assert (expected - kept.unedited).abs().max() > 1e-3, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tower", TOWERS)
def test_late_edits_of_several_tensors_are_one_edit(model, pairs, tower, kind):
    kept, changes = kept_of(model, pairs, tower), changes_of(model, LATE[tower], kind)
    assert kept.is_quick(changes)
    expected = plainly(model, pairs, tower, changes)
    torch.testing.assert_close(kept.embed(changes), expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("tower", TOWERS)
def test_other_edits_run_blocks_bit_for_bit(model, pairs, tower, room):
    kept = kept_of(model, pairs, tower, ROOMS[room][tower])
    names = [*map(WeightId.parse, EARLY[tower])]
    for kind in KINDS:
        for name in (*names, *names):  # the second time from outputs that were kept the first time
            changes = {name: change_of(model, name, kind)}
            if changes[name] is None:
                continue
            assert not kept.is_quick(changes)
            assert kept.embed(changes).equal(plainly(model, pairs, tower, changes)), (name, kind)
    blocks, batches = {"text": 1, "vision": 2}[tower], 3
    images = len({*sources_of(pairs, tower)}) if tower == "vision" else 0
    found, every = len(model.kept.pixels) + len(model.kept.outputs), images + blocks * batches
    assert 0 < found < every if room == "some" else found == (every if room == "all" else 0)


def test_an_early_edit_beside_a_late_one_runs_from_the_early_block(model, pairs):
    changes = changes_of(model, ["vision.2.fc2", "vision.1.fc1", "vision.proj"])
    kept = kept_of(model, pairs, "vision")
    for _ in range(2):
        assert kept.embed(changes).equal(plainly(model, pairs, "vision", changes))
    assert {block for _, block, _ in model.kept.outputs} == {0}


def test_blocks_before_the_edited_one_are_not_run_again(model, pairs):
    kept, calls = kept_of(model, pairs, "vision"), []
    handle = model.owner(WeightId("vision", 1, "fc1")).register_forward_hook(lambda *_: calls.append(1))
    try:
        for seed in range(3):
            name = WeightId("vision", 2, "out_proj")
            kept.embed({name: change_of(model, name, "set", seed)})
    finally:
        handle.remove()
    assert len(calls) == 3  # the three batches of the first time


def test_an_edit_of_the_other_tower_changes_nothing(model, pairs):
    changes = changes_of(model, ["vision.0.fc1"])
    kept = kept_of(model, pairs, "text")
    assert kept.is_quick(changes)
    assert kept.embed(changes) is kept.unedited


@pytest.mark.parametrize("name", ["text.1.fc2.bias", "text.0.fc1"])
def test_embeddings_that_are_not_finite_are_refused(model, pairs, name):
    kept, tensor = kept_of(model, pairs, "text"), WeightId.parse(name)
    count = model.parameter(tensor).numel()
    huge = SetEntries.of(np.arange(count), np.where(np.arange(count) % 2, 3e38, -3e38))
    with pytest.raises(InvalidResult, match="text tower: NaN or infinite embeddings"):
        kept.embed({tensor: huge})


def test_room_is_taken_until_there_is_none():
    kept = Kept(10)
    assert kept.take(torch.zeros(2))
    assert not kept.take(torch.zeros(1))
    assert kept.room == 2


# ---------------------------------------------------------------- towers that are another than described


def test_an_unknown_activation_falls_back_to_running_the_blocks(tiny_hf, pairs):
    model = uwm.load(tiny_hf)
    model.module.vision_model.encoder.layers[2].mlp.activation_fn = nn.Softplus()
    falls_back(model, pairs)


def test_an_unknown_norm_falls_back_to_running_the_blocks(tiny_hf, pairs):
    model = uwm.load(tiny_hf)

    class Halved(nn.Module):
        weight, bias = model.module.vision_model.post_layernorm.weight, model.module.vision_model.post_layernorm.bias

        def forward(self, x):
            return x * self.weight / 2 + self.bias

    model.module.vision_model.post_layernorm = Halved()
    falls_back(model, pairs)


def test_an_mlp_whose_output_is_scaled_falls_back_to_running_the_blocks(tiny_hf, pairs):
    """Unedited, such a tower gives what the short way gives: only an edit shows the difference."""
    model = uwm.load(tiny_hf)
    second = model.module.vision_model.encoder.layers[2].mlp
    second.register_forward_hook(lambda module, args, output: 0.3 * output)
    falls_back(model, pairs)


def falls_back(model, pairs):
    kept, changes = kept_of(model, pairs, "vision"), changes_of(model, ["vision.2.fc2"])
    assert not kept.is_quick(changes)
    assert kept.embed(changes).equal(plainly(model, pairs, "vision", changes))


def test_half_precision_runs_the_blocks(tiny_hf, pairs):
    falls_back(uwm.load(tiny_hf, dtype="bfloat16"), pairs)


# ---------------------------------------------------------------- skipping blocks


class Block(nn.Module):
    """As transformers 4 has them: its output is a tuple."""

    def __init__(self, step):
        super().__init__()
        self.step, self.calls = step, 0

    def forward(self, x, mask=None):
        self.calls += 1
        return x + self.step, "attention"


def through(blocks, x):
    for block in blocks:
        x = block(x, mask=1)[0]
    return x


def test_blocks_that_give_tuples_are_skipped():
    blocks, x = [Block(1), Block(10), Block(100)], torch.zeros(2)
    with kept_outputs(blocks[1]) as outputs:
        assert through(blocks, x).tolist() == [111, 111]
    assert [type(output) for output in outputs] == [tuple]
    assert outputs[0][0].tolist() == [11, 11]
    with skipped(blocks[:2], outputs[0]):
        assert through(blocks, x).tolist() == [111, 111]
    assert [block.calls for block in blocks] == [1, 1, 2]
    assert len(outputs) == 1
    assert not blocks[1]._forward_hooks


def test_skipped_blocks_are_as_they_were_also_when_the_body_raises():
    blocks = [Block(1), Block(10)]
    own = blocks[1].forward = partial(Block.forward, blocks[1])
    for error in (None, KeyError):
        try:
            with skipped(blocks, torch.zeros(1)):
                assert blocks[0](torch.ones(1)).tolist() == blocks[1](torch.ones(1)).tolist() == [0]
                if error:
                    raise error
        except KeyError:
            pass
        assert "forward" not in vars(blocks[0])
        assert blocks[1].forward is own
    assert [block.calls for block in blocks] == [0, 0]


# ---------------------------------------------------------------- whole sets


@pytest.mark.parametrize("names", [["text.1.fc2", "vision.2.fc1"], ["text.0.out_proj", "vision.proj"]])
def test_pairs_are_embedded_as_uwm_embeds_them(model, pairs, names):
    """Against a patch that is in effect; pairs that share items embed each once."""
    whole = quadruples(pairs)
    keep = partial(CachedTower, model, batch_size=5, workers=1)
    kept = CachedPairs(whole, keep, {"text": ["a dog", "a tree"]})
    changes = changes_of(model, names)
    patch = make_patch(model, Proposal(changes), {"method": "by hand"})
    with uwm.patched(model, patch):
        expected = embed(model, whole, batch_size=5)
        (dog, tree) = embedded_plainly(model, "text", ["a dog", "a tree"], {}, 2)
    found = kept.embed(changes)
    for side, rows in vars(expected).items():
        torch.testing.assert_close(getattr(found.pairs, side), rows, rtol=0, atol=CLOSE)
    torch.testing.assert_close(found.others["text"], torch.stack([dog, tree]), rtol=0, atol=CLOSE)
    assert found.others["vision"].shape == (0, 24)
    assert found.safe["text"].shape == (8, 24)


class Shared:
    """Pictures of the set, in two classes."""

    def __init__(self, pairs, step=1):
        self.images = sources_of(pairs, "vision")[::step]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return read(self.images[index]), index % 3


@pytest.mark.parametrize("names", [["text.1.fc1", "vision.proj"], ["text.0.fc1", "vision.1.fc2"]])
def test_data_sets_are_classified_as_by_zero_shot(model, pairs, names):
    two = {
        "one": DataSet(
            "one", Shared(pairs), ("dog", "cat", "knife"), ("a {}", "a picture of {}"), frozenset({"knife"})
        ),
        "other": DataSet("other", Shared(pairs, -1), ("car", "tree", "car"), ("a {}",)),  # two classes of one name
    }
    kept = CachedDataSets(model, two, partial(CachedTower, model, batch_size=3, workers=1))
    for changes in ({}, changes_of(model, names)):
        found, without = kept.classify(changes, seed=4), kept.classify(changes)
        with changed(model, changes):
            for name, data in two.items():
                expected = zero_shot(model, data, batch_size=4, seed=4)
                assert found[name].figures == expected.figures, name
                assert found[name].right.equal(expected.right)
                assert "top1_interval" not in without[name].figures
