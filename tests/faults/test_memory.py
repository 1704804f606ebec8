"""Row 75: a batch that memory has no room for is run by halves, with the same result."""

from __future__ import annotations

import pytest
import torch
from terminal import refused

import uwm
from uwm.calibration import read_calibration
from uwm.embedding import embed
from uwm.models.hugging_face import HuggingFaceModel as Model
from uwm.statistics import passes


@pytest.fixture
def small_device(monkeypatch):
    """A device with room for so many samples at a time, which says how many were asked for."""

    def limit(most, in_layer=False):
        asked = []

        def short(name):
            run = getattr(Model, name)

            def encode(self, inputs, *more):
                asked.append(len(inputs))
                if len(inputs) > most and not in_layer:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
                found = run(self, inputs, *more)
                if len(inputs) > most and asked.count(len(inputs)) % 2 == 0:  # the unsafe side, its layers seen
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
                return found

            monkeypatch.setattr(Model, name, encode)

        short("encode_text")
        short("encode_image")
        monkeypatch.setattr(passes, "can_run_out", lambda device: True)
        return asked

    return limit


@pytest.mark.parametrize("in_layer", [False, True])
def test_f75_scores_are_the_same_where_half_a_batch_fits(
    in_layer, small_device, tiny_hf, tiny_set, monkeypatch, caplog
):
    monkeypatch.setattr(passes, "PIECE", None)
    monkeypatch.setattr("uwm.statistics.channel_norms.ChannelNorms.needs_embeddings", True)
    pairs = read_calibration(tiny_set)
    whole = uwm.score(uwm.load(tiny_hf), pairs, batch_size=16)
    asked = small_device(5, in_layer)
    by_halves = uwm.score(uwm.load(tiny_hf), pairs, batch_size=16)
    assert max(asked) == 16
    assert all(torch.equal(tensor, by_halves[weight]) for weight, tensor in whole.items())
    assert "vision tower: out of memory with 16 at a time; going on with 8" in caplog.text
    assert "text tower: out of memory with 8 at a time; going on with 4" in caplog.text
    assert asked.count(16) == (4 if in_layer else 2)  # the first batch of each tower found out, for all


def test_f75_figures_are_the_same_where_half_a_batch_fits(small_device, tiny_hf, tiny_set):
    pairs = read_calibration(tiny_set)
    whole = embed(uwm.load(tiny_hf), pairs, batch_size=16)
    asked = small_device(3)
    by_halves = embed(uwm.load(tiny_hf), pairs, batch_size=16)
    for name, rows in vars(whole).items():
        torch.testing.assert_close(rows, getattr(by_halves, name), rtol=1e-5, atol=1e-6)
    assert asked.count(16) == 2


def test_f75_a_single_pair_that_does_not_fit_is_an_error(small_device, tiny_hf, tiny_set, run_uwm, tmp_path):
    small_device(0)
    arguments = ("--calib", tiny_set, "-o", tmp_path / "scores.safetensors", "-q")
    line = run_uwm("score", tiny_hf, *arguments)[2].splitlines()[-1]
    assert line == "uwm: error: out of memory; try a smaller --batch-size, or --device cpu"
    assert list(tmp_path.iterdir()) == []


def test_f75_another_error_is_not_taken_for_it(small_device, tiny_hf, tiny_set, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Model, "encode_image", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        embed(uwm.load(tiny_hf), read_calibration(tiny_set))
    assert "out of memory" not in caplog.text


def test_f76_memory_of_the_host_that_is_short_is_one_line(run_uwm, tiny_set, monkeypatch):
    for error in (
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("can't start new thread"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        ImportError("libx.so: cannot allocate memory in static TLS block"),
        OSError(12, "Cannot allocate memory"),
    ):

        def short(*_, error=error, **__):
            raise error

        monkeypatch.setattr("uwm.calibration.read_calibration", short)
        refused(run_uwm("calib-check", tiny_set), 4, "memory")
