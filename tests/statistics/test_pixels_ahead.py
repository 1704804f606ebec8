"""Images are made ahead of the model, and what they are does not depend on how."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

import uwm
from uwm.errors import BadInput
from uwm.models.kept import Kept
from uwm.statistics import pixels


@pytest.fixture(scope="module")
def model(tiny_hf):
    return uwm.load(tiny_hf)


@pytest.fixture(scope="module")
def groups(tiny_set):
    paths = [pair.safe_image for pair in uwm.read_calibration(tiny_set).pairs]
    return [paths[:5], paths[5:10], paths[8:11]]


def on_accelerator(model, kept=None):
    """What preprocesses as the model does, and says that it is on an accelerator."""
    where = torch.device("meta")
    return SimpleNamespace(kept=kept, preprocess=model.preprocess, device=where, modalities=model.modalities)


@pytest.mark.parametrize("keeps", [False, True])
def test_an_accelerator_gets_the_same_images(model, groups, keeps):
    expected = [*pixels.pixel_batches(model, groups, 2)]
    kept = Kept() if keeps else None
    for _ in range(2):  # the second time from what is kept
        found = [*pixels.pixel_batches(on_accelerator(model, kept), groups, 2)]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert kept is None or len(kept.pixels) == 11


def test_an_image_that_cannot_be_read_is_an_error_there_too(model, groups, tmp_path):
    made = pixels.pixel_batches(on_accelerator(model), [*groups, [tmp_path / "gone.png"]], 2)
    assert len([next(made) for _ in groups]) == 3
    with pytest.raises(BadInput, match="no such picture"):
        next(made)


def test_one_batch_is_made_while_the_caller_works():
    second = threading.Event()

    def made():
        yield torch.tensor(0)
        second.set()
        yield torch.tensor(1)

    ahead = pixels._ahead(made())
    assert int(next(ahead)) == 0
    assert second.wait(10)
    assert [int(one) for one in ahead] == [1]


def test_a_pass_that_ends_early_leaves_no_thread(model, groups):
    before = threading.active_count()
    made = pixels.pixel_batches(on_accelerator(model), groups, 2)
    next(made)
    assert threading.active_count() > before
    made.close()
    assert threading.active_count() == before


def processors_of_workers(one, groups, monkeypatch):
    """How many processors each call of the preprocessing takes, while others take three."""
    before, seen, preprocess = torch.get_num_threads(), [], one.preprocess
    monkeypatch.setattr(one, "preprocess", lambda images: seen.append(torch.get_num_threads()) or preprocess(images))
    torch.set_num_threads(3)
    try:
        made = pixels.pixel_batches(one, groups, 2)
        next(made)  # reading has begun, and has not ended
        with ThreadPoolExecutor(1) as other:
            assert other.submit(torch.get_num_threads).result() == 3
        assert len([*made]) == 2
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    return {*seen}


def test_workers_for_an_accelerator_take_one_processor_each_and_the_others_as_many_as_before(
    model, groups, monkeypatch
):
    assert processors_of_workers(on_accelerator(model), groups, monkeypatch) == {1}


def test_workers_for_the_cpu_change_nothing_that_other_threads_see(model, groups, monkeypatch):
    monkeypatch.setattr(pixels, "_take_one_processor", None)
    assert processors_of_workers(model, groups, monkeypatch) == {3}


def test_a_thread_that_cannot_be_begun_leaves_none_waiting(model, groups, monkeypatch):
    before, begin = threading.active_count(), threading.Thread.start

    def start(thread):
        if threading.active_count() > before + 1:  # one puts batches together
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="start new thread"):
        next(pixels.pixel_batches(on_accelerator(model), groups, 2))
    assert threading.active_count() == before


def test_nothing_is_told_of_no_images(model, caplog):
    caplog.set_level(logging.INFO, "uwm")
    assert [*pixels.pixel_batches(model, [], 2)] == []
    assert caplog.text == ""
