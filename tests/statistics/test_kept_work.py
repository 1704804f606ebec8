"""What a job keeps of a model's work: nothing is run or read twice, and every embedding is the same bit for bit."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from tuning.edits_of_all_kinds import changes_of, embedded_plainly, sources_of

import uwm
from uwm.editing.live import changed
from uwm.errors import BadInput
from uwm.images import load_image
from uwm.models.kept import Kept
from uwm.statistics import pixels, reading
from uwm.statistics.batches import embed_inputs
from uwm.statistics.hooks import block_module, kept_outputs
from uwm.statistics.sources import embed_sources, in_turn, keep_for
from uwm.weights import WeightId

BATCH = 3
EDITS = [
    ["text.1.fc2", "vision.2.fc1"],
    ["vision.proj"],
    ["text.0.out_proj", "vision.1.fc2"],
    ["vision.patch_embedding"],
]


@pytest.fixture
def model(tiny_hf):
    return uwm.load(tiny_hf)


@pytest.fixture(scope="module")
def pairs(tiny_set):
    return uwm.read_calibration(tiny_set, split="test")


def embedded(model, tower, sources):
    return torch.nn.functional.normalize(embed_sources(model, tower, sources, batch_size=BATCH, workers=2), dim=-1)


@pytest.mark.parametrize("room", [None, 0, 150_000, 1 << 30])
@pytest.mark.parametrize("tower", ["text", "vision"])
def test_columns_of_edits_are_embedded_bit_for_bit_in_any_order(model, pairs, tower, room):
    sources = sources_of(pairs, tower)
    model.kept = None if room is None else Kept(room)
    for names in [*EDITS, *reversed(EDITS)]:
        changes = changes_of(model, names)
        expected = {True: embedded_plainly(model, tower, sources, changes, BATCH)}
        expected[False] = embedded_plainly(model, tower, sources, {}, BATCH)
        with changed(model, changes):
            assert embedded(model, tower, sources).equal(expected[True]), names
        assert embedded(model, tower, sources).equal(expected[False]), names


def test_an_image_is_read_once_for_all_columns(model, pairs, monkeypatch):
    read = []
    monkeypatch.setattr(reading, "load_image", lambda path, real=reading.load_image: read.append(path) or real(path))
    model.kept, sources = Kept(), sources_of(pairs, "vision")
    assert pixels.keep_images(model, sources, 2) == []
    for names in EDITS:
        with changed(model, changes_of(model, names)):
            embedded(model, "vision", sources)
    embedded(model, "vision", sources)
    assert sorted(read) == sorted({*sources})


def test_an_edit_that_is_announced_runs_only_what_follows(model, pairs):
    model.kept, sources, calls = Kept(), sources_of(pairs, "vision"), []
    changes = changes_of(model, ["vision.2.fc2", "vision.proj"])
    keep_for(model, [changes])
    for block in (0, 1, 2):
        owner = model.owner(WeightId("vision", block, "fc1"))
        owner.register_forward_hook(lambda *_, block=block: calls.append(block))
    embedded(model, "vision", sources)
    with changed(model, changes):
        embedded(model, "vision", sources)
    assert embedded(model, "vision", sources).shape[0] == len(sources)
    batches = -(-len(sources) // BATCH)
    assert [calls.count(block) for block in (0, 1, 2)] == [batches, batches, 2 * batches]


def test_all_images_that_cannot_be_read_are_named_and_the_others_kept(model, pairs, tmp_path):
    bad = [tmp_path / "one.png", tmp_path / "two.png"]
    for path in bad:
        path.write_bytes(b"no image")
    model.kept, sources = Kept(), sources_of(pairs, "vision")
    told = pixels.keep_images(model, [bad[0], *sources, bad[1]], 2, group=3)
    assert [str(path) in line for path, line in zip(bad, told, strict=True)] == [True, True]
    assert {*model.kept.pixels} == {*sources}


def test_an_image_that_cannot_be_read_is_an_error_in_the_middle_of_a_pass(model, pairs, tmp_path):
    with pytest.raises(BadInput, match="no such picture"):
        embedded(model, "vision", [*sources_of(pairs, "vision"), tmp_path / "gone.png"])


def test_how_long_the_model_waited_is_logged(model, pairs, caplog):
    caplog.set_level(logging.INFO, "uwm")
    embedded(model, "vision", sources_of(pairs, "vision"))
    assert "for images" in caplog.text


def test_preprocessing_an_image_does_not_depend_on_its_batch(model, pairs):
    sources = sources_of(pairs, "vision")
    (together,) = pixels.pixel_batches(model, [sources], 1)
    apart = torch.cat([*pixels.pixel_batches(model, [[one] for one in sources], 1)])
    assert together.equal(apart)


def batches_of(model, tower, monkeypatch):
    """How long, and how many, the inputs of every batch are."""
    shapes, name = [], {"text": "encode_text", "vision": "encode_image"}[tower]
    encode = getattr(model, name)
    monkeypatch.setattr(model, name, lambda *inputs: shapes.append(tuple(inputs[0].shape[:2])) or encode(*inputs))
    return shapes


def test_captions_of_one_length_are_embedded_together_and_come_back_in_order(model, pairs, monkeypatch):
    captions = [f"{'a ' * (1 + 7 * (n % 3))}dog {n % 10}" for n in range(48)]
    apart = torch.cat([embed_sources(model, "text", [caption], batch_size=1, workers=1) for caption in captions])
    embed_sources(model, "text", captions, batch_size=16, workers=1)
    shapes = batches_of(model, "text", monkeypatch)
    together = embed_sources(model, "text", captions, batch_size=16, workers=1)
    torch.testing.assert_close(together, apart)
    lengths = model.caption_lengths(captions)
    assert shapes == [(16, length) for length in sorted({*lengths})]


def test_lengths_of_captions_are_found_once_a_job(model, monkeypatch):
    captions, asked = [f"{'a ' * (n % 5)}dog" for n in range(20)], []
    monkeypatch.setattr(model, "caption_lengths", lambda texts: asked.extend(texts) or [*map(len, texts)])
    model.kept = Kept()
    for _ in range(2):
        assert in_turn(model, captions, 16) == sorted(range(20), key=lambda n: n % 5)
    assert asked == [*dict.fromkeys(captions)]


def test_on_the_cpu_few_images_run_together(model, pairs, monkeypatch):
    sources = [*sources_of(pairs, "vision"), *sources_of(pairs, "vision")]
    monkeypatch.setattr("uwm.statistics.sources.PIECE", 5)
    shapes = batches_of(model, "vision", monkeypatch)
    embed_sources(model, "vision", sources, batch_size=64, workers=1)
    assert [count for count, _ in shapes] == [5, 5, 5, 1]


@pytest.mark.parametrize("pixels_at_a_time", [1, 2 * 64 * 64, 1 << 30])
def test_images_that_are_preprocessed_together_are_the_same_bit_for_bit(model, tmp_path, monkeypatch, pixels_at_a_time):
    rng, files = np.random.default_rng(0), []
    for number in range(7):
        size = (64, 64) if number % 2 else (40 + number, 300)
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(files[-1])
    apart = torch.cat([model.preprocess([load_image(file)]) for file in files])
    counts, preprocess = [], model.preprocess
    monkeypatch.setattr(model, "preprocess", lambda images: counts.append(len(images)) or preprocess(images))
    monkeypatch.setattr(reading, "PIXELS", pixels_at_a_time)
    model.kept = Kept()
    (together,) = pixels.pixel_batches(model, [files], 1)
    assert together.equal(apart)
    assert sum(counts) == 7
    assert (max(counts) == 1) == (pixels_at_a_time == 1)
    kept = model.kept.pixels[files[0]]
    assert kept.untyped_storage().nbytes() == kept.nbytes  # it does not hold the memory of all


def test_every_worker_reads_a_part_of_a_batch(model, pairs, monkeypatch):
    counts, preprocess = [], model.preprocess
    monkeypatch.setattr(model, "preprocess", lambda images: counts.append(len(images)) or preprocess(images))
    sources = sources_of(pairs, "vision")
    [*pixels.pixel_batches(model, [sources], 3)]
    assert sorted(counts) == [2, 3, 3]


def test_what_is_kept_of_the_last_block_is_of_all_tokens(model, pairs):
    sources = 2 * sources_of(pairs, "vision")  # as many as may take the short way of `embed_pooled`
    model.kept = Kept()
    embed_sources(model, "vision", sources, batch_size=16, workers=1)
    model.kept.embeddings.clear()
    keep_for(model, [changes_of(model, ["vision.proj"])])
    embed_sources(model, "vision", sources, batch_size=16, workers=1)
    (output,) = model.kept.outputs.values()
    with kept_outputs(block_module(model, WeightId("vision", 2, "fc1"))) as whole:
        embed_inputs(model, *pixels.pixel_batches(model, [sources], 1), None)
    assert model.pooled_alone == {("vision", 16): True}
    torch.testing.assert_close(output, whole[0], rtol=0, atol=0)


def test_an_edit_within_another_does_not_make_the_model_count_as_unedited(model, pairs):
    model.kept, sources, changes = Kept(), sources_of(pairs, "vision"), changes_of(model, ["vision.1.fc2"])
    unedited = embedded(model, "vision", sources)
    with changed(model, changes):
        with changed(model, changes):
            pass
        assert model.edited == {*changes}
        assert not embedded(model, "vision", sources).equal(unedited)
    assert model.edited == set()
