"""The one pass feeds every reducer, and refuses to be silent about a layer that it did not see."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import uwm
from uwm.editing.entries.uwm import UwmScorer
from uwm.errors import BadInput, InvalidResult
from uwm.statistics import passes
from uwm.statistics.batches import pair_batches
from uwm.statistics.channel_norms import ChannelNorms
from uwm.statistics.embeddings import PairEmbeddings
from uwm.statistics.passes import RESIDUAL, SAFE, UNSAFE, run_pass
from uwm.weights import WeightId, match


@pytest.fixture
def model(tiny_hf):
    return uwm.load(tiny_hf)


@pytest.fixture
def batches(model, tiny_set):
    return list(pair_batches(model, uwm.read_calibration(tiny_set), batch_size=10, towers=("text", "vision")))


def captions_of(batches):
    return [replace(batch, safe_pixel_values=None, unsafe_pixel_values=None) for batch in batches]


def images_of(batches):
    return [replace(batch, safe_input_ids=None, unsafe_input_ids=None) for batch in batches]


def scorers_of(model, tower, slot):
    return {w: UwmScorer(w, model.parameter(w)) for w in match(slot, model.weights, tower)}


def profile(model, batches, scorers):
    return run_pass(model, batches, [ChannelNorms(scorers)], {w.tower for w in scorers})


def test_only_the_towers_asked_for_are_run(model, batches):
    assert profile(model, batches, scorers_of(model, "text", "fc2")) == {"text": 24}
    assert profile(model, batches, scorers_of(model, "vision", "fc2")) == {"vision": 24}


def test_f48_a_layer_that_is_never_called_is_an_error(model, batches):
    """A block that skips its MLP: the hook does not fire."""
    block = model.module.text_model.encoder.layers[1]
    block.mlp.forward = lambda x: x
    with pytest.raises(InvalidResult, match=r"text\.1\.fc2 received 0 activations for 10 samples"):
        profile(model, batches, scorers_of(model, "text", "fc2"))


def test_a_layer_that_sees_fewer_rows_is_an_error(model, batches):
    fc2 = model.module.vision_model.encoder.layers[0].mlp.fc2
    original = fc2.forward
    fc2.register_forward_pre_hook(lambda _, args: (args[0][:5],))
    fc2.forward = lambda x: original(torch.cat([x, x]))
    with pytest.raises(InvalidResult, match=r"vision\.0\.fc2 received 5 activations for 10 samples"):
        profile(model, batches, scorers_of(model, "vision", "fc2"))


def test_a_set_without_pairs_for_the_tower_is_an_error(model, batches):
    texts = captions_of(batches)
    with pytest.raises(InvalidResult, match=r"vision\.0\.fc2 received no activations"):
        profile(model, texts, scorers_of(model, "vision", "fc2"))


def test_f49_nan_names_the_layer_and_the_pair(model, batches):
    pictures = images_of(batches)
    broken = pictures[1].unsafe_pixel_values.clone()
    broken[3] = float("nan")
    pictures[1] = replace(pictures[1], unsafe_pixel_values=broken)
    with pytest.raises(InvalidResult, match=r"vision\.0\.fc2: NaN or infinite activations at pair 13"):
        profile(model, pictures, scorers_of(model, "vision", "fc2"))


class Witness:
    """Notes what it is given."""

    def __init__(self, *weights):
        self.weights, self.inputs, self.parts = weights, [], []

    def layers(self, tower):
        return [w for w in self.weights if w.tower == tower]

    def take(self, weight, side, x, mask):
        self.inputs.append((weight, side, x.clone(), mask))

    def update(self, part):
        self.parts.append(part)


def test_nan_of_a_layer_that_other_reducers_look_at_is_found_too(model, batches):
    images = images_of(batches)
    model.module.vision_model.encoder.layers[0].register_forward_hook(lambda _, args, output: output + torch.inf)
    with pytest.raises(InvalidResult, match=r"vision\.0\.residual: NaN or infinite activations at pair 0"):
        run_pass(model, images, [Witness(WeightId("vision", 0, RESIDUAL))], ["vision"])


def test_huge_activations_are_no_nan(model, batches):
    """Their sum over a batch overflows float32, none of them does."""
    images = images_of(batches)
    fc2 = model.module.vision_model.encoder.layers[0].mlp.fc2
    fc2.register_forward_pre_hook(lambda _, args: (torch.full_like(args[0], 3e38),))
    fc2.register_forward_hook(lambda _, args, output: torch.zeros_like(output))
    witness = Quick(WeightId("vision", 0, "fc2"))
    run_pass(model, images, [witness], ["vision"])
    assert all((x == 3e38).all() for _, _, x, _ in witness.inputs)


@pytest.mark.parametrize("reducers", ["none that scores", "a scorer and one that needs embeddings"])
def test_embeddings_that_are_computed_are_checked(model, batches, reducers):
    """The last block's output is broken after the last layer that is scored."""
    images = images_of(batches)
    broken = []
    model.module.visual_projection.register_forward_hook(
        lambda _, args, output: output.index_fill(0, torch.tensor(4), torch.nan) if broken or broken.append(1) else None
    )
    scorers = ChannelNorms(scorers_of(model, "vision", "fc2"))
    given = [Witness()] if reducers == "none that scores" else [scorers, Witness()]
    with pytest.raises(InvalidResult, match="vision tower: NaN or infinite embeddings at pair 4"):
        run_pass(model, images, given, ["vision"])


FC2, RESIDUAL_0, NEXT = WeightId("text", 0, "fc2"), WeightId("text", 0, RESIDUAL), WeightId("text", 1, "q_proj")


def test_reducers_share_one_pass(model, batches):
    first, second, blind = Witness(FC2), Witness(FC2, RESIDUAL_0), Witness()
    calls = []
    handle = model.module.text_model.register_forward_hook(lambda *_: calls.append(1))
    assert run_pass(model, batches, [first, second, blind], ["text"]) == {"text": 24}
    handle.remove()
    assert len(calls) == 7  # three batches, two sides, and the first once more for its pooled token
    assert [(w, side) for w, side, *_ in first.inputs] == [(FC2, SAFE), (FC2, UNSAFE)] * 3
    assert [(w, side) for w, side, *_ in second.inputs] == [(FC2, 0), (RESIDUAL_0, 0), (FC2, 1), (RESIDUAL_0, 1)] * 3
    assert [part.first for part in blind.parts] == [0, 10, 20]
    assert [len(side) for part in blind.parts for side in part.embeddings] == [10, 10, 10, 10, 4, 4]
    assert not model.module.text_model.encoder.layers[0]._forward_hooks


@pytest.mark.parametrize("folder", ["tiny_hf", "tiny_open_clip"])
def test_the_residual_stream_is_what_the_next_block_normalises(folder, batches, request):
    model = uwm.load(request.getfixturevalue(folder))
    texts = captions_of(batches)
    witness = Witness(RESIDUAL_0, NEXT)
    run_pass(model, texts[:1], [witness], ["text"])
    (_, _, residual, mask), (_, _, following, _) = witness.inputs[:2]
    blocks = model.module.text_model.encoder.layers if folder == "tiny_hf" else model.module.transformer.resblocks
    norm = blocks[1].layer_norm1 if folder == "tiny_hf" else blocks[1].ln_1
    torch.testing.assert_close(norm(residual), following)
    assert mask.shape == residual.shape[:2]


def test_a_preservation_batch_has_a_safe_side_only(model, batches):
    safe = [replace(b, unsafe_input_ids=None, unsafe_attention_mask=None, unsafe_pixel_values=None) for b in batches]
    assert [(len(b.sides("text")), len(b.sides("vision"))) for b in safe] == [(1, 1)] * 3
    witness = Witness(FC2)
    assert run_pass(model, safe, [witness], ["text", "vision"]) == {"text": 24, "vision": 24}
    assert {side for _, side, *_ in witness.inputs} == {SAFE}
    assert all(len(part.embeddings) == 1 for part in witness.parts)
    with pytest.raises(BadInput, match="a batch of the text tower has no unsafe side"):
        profile(model, safe, scorers_of(model, "text", "fc2"))


def test_a_batch_without_a_safe_side_has_no_sides(batches):
    unsafe = replace(batches[0], safe_input_ids=None, safe_attention_mask=None)
    assert unsafe.sides("text") == []


def test_a_layer_that_is_called_twice_is_an_error(model, batches):
    block = model.module.text_model.encoder.layers[1]
    original = block.mlp.forward
    block.mlp.forward = lambda x: original(x) + original(x)
    with pytest.raises(InvalidResult, match=r"text\.1\.fc2 received 20 activations for 10 samples"):
        profile(model, batches, scorers_of(model, "text", "fc2"))


def test_a_block_that_the_tower_does_not_have_is_an_error(model, batches):
    with pytest.raises(InvalidResult, match=r"text\.7\.residual: the text tower has no block 7"):
        run_pass(model, batches, [Witness(WeightId("text", 7, RESIDUAL))], ["text"])


def test_without_a_layer_the_error_names_the_tower(model, batches):
    texts = captions_of(batches)
    with pytest.raises(InvalidResult, match="the vision tower received no activations: the set has no pairs"):
        run_pass(model, texts, [PairEmbeddings()], ["vision"])


class Quick(Witness):
    """One that does not look at embeddings."""

    needs_embeddings = False


@pytest.fixture
def calls(model):
    """How often the second text block was run."""
    counted = []
    model.module.text_model.encoder.layers[1].register_forward_hook(lambda *_: counted.append(1))
    return counted


def test_the_pass_stops_at_the_last_layer_that_is_asked_for(model, batches, calls):
    texts = captions_of(batches)
    run_pass(model, texts, [Witness(FC2)], ["text"])
    whole, quick = len(calls), Quick(FC2)
    assert whole == 7  # three batches, two sides, and the first once more for its pooled token
    calls.clear()
    assert run_pass(model, texts, [quick], ["text"]) == {"text": 24}
    assert len(calls) == 1  # the first side of the first piece
    assert [len(x) for _, _, x, _ in quick.inputs] == [10, 10, 10, 10, 4, 4]
    assert all(part.embeddings == () and len(part.inputs) == 2 for part in quick.parts)
    assert not model.module.text_model.encoder.layers[0].mlp.fc2._forward_pre_hooks


def test_one_reducer_that_needs_the_embeddings_has_them_all(model, batches, calls, monkeypatch):
    monkeypatch.setattr(passes, "PIECE", 4)  # such a pass runs whole batches
    texts = captions_of(batches)
    quick, other = Quick(FC2), Witness()
    run_pass(model, texts, [quick, other], ["text"])
    assert [len(side) for part in other.parts for side in part.embeddings] == [10, 10, 10, 10, 4, 4]
    assert len(calls) == 7


def test_what_is_seen_does_not_depend_on_the_pieces(model, batches, monkeypatch):
    whole, cut = Quick(FC2), Quick(FC2)
    run_pass(model, batches[:1], [whole], ["text"])
    monkeypatch.setattr(passes, "PIECE", 4)
    assert run_pass(model, batches[:1], [cut], ["text"]) == {"text": 10}
    assert [part.first for part in cut.parts] == [0, 4, 8]
    for side in (SAFE, UNSAFE):
        for number in (2, 3):  # inputs, masks
            rows = [torch.cat([taken[number] for taken in w.inputs if taken[1] == side]) for w in (whole, cut)]
            torch.testing.assert_close(*rows)


def test_sides_that_are_no_pairs_run_in_one_piece(model, batches, monkeypatch):
    monkeypatch.setattr(passes, "PIECE", 2)
    witness = Quick(FC2)
    unpaired = replace(
        batches[0], safe_input_ids=batches[0].safe_input_ids[:3], safe_attention_mask=batches[0].safe_attention_mask[:3]
    )
    run_pass(model, [unpaired], [witness], ["text"])
    assert [len(x) for _, _, x, _ in witness.inputs] == [3, 10]
