"""Processes that read images give what threads give, and end with the one that began them."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from by_processes import WAIT, read_by_processes
from PIL import Image, ImageFile

import uwm
from uwm.errors import BadInput, ResourceFault
from uwm.models.kept import Kept
from uwm.statistics import pixels, reading_processes, reading_server
from uwm.statistics.reading_processes import ReadingProcesses

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere threads read")


@pytest.fixture(scope="module")
def model(tiny_hf):
    return uwm.load(tiny_hf)


@pytest.fixture(scope="module")
def paths(tiny_set):
    return [pair.unsafe_image for pair in uwm.read_calibration(tiny_set).pairs]


@pytest.fixture
def at_once(monkeypatch):
    read_by_processes(monkeypatch)


def on_accelerator(model, **changed):
    """What preprocesses images as the model does, and says that it is on an accelerator."""
    how = {
        "preprocess": model.preprocess,
        "preprocessor": model.preprocessor,
        "modalities": model.modalities,
        "kept": None,
    }
    return SimpleNamespace(device=torch.device("meta"), **(how | changed))


def not_here(images):
    raise AssertionError("a thread prepared images")


def children(pid):
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid):
    """Whether a process has ended, soon."""
    for _ in range(10 * WAIT):
        try:
            if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.usefixtures("at_once")
def test_processes_give_the_images_that_threads_give(model, paths, tmp_path, monkeypatch):
    small, cut = tmp_path / "small.png", tmp_path / "cut.png"
    Image.new("RGB", (90, 40), (200, 10, 70)).save(small)
    whole = paths[0].read_bytes()
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # what Pillow is told holds there, too
    groups, kept = [paths[:5], [*paths[5:10], small], [*paths[8:11], cut], paths[:1]], Kept()
    found = [*pixels.pixel_batches(on_accelerator(model, preprocess=not_here, kept=kept), groups, 2)]
    expected = [*pixels.pixel_batches(model, groups, 2)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    one = kept.pixels[small]
    assert one.untyped_storage().nbytes() == one.nbytes  # it does not hold the memory of all
    one += 1  # and is memory of its own


@pytest.mark.usefixtures("at_once")
def test_what_is_wrong_with_images_is_said_in_order(model, paths, tmp_path):
    damaged, missing = tmp_path / "damaged.png", tmp_path / "missing.png"
    damaged.write_bytes(paths[0].read_bytes()[:200])
    told = pixels.keep_images(on_accelerator(model, preprocess=not_here), [damaged, *paths, missing], 2)
    assert told == pixels.keep_images(model, [damaged, *paths, missing], 2)
    assert [one.split(":")[0] for one in told] == [str(damaged), str(missing)]


class Picky(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


def failing(images):
    raise Picky("not", "today")


def answer_to(preprocess, paths):
    """What a process answers; here a thread does its work."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(1) as other:
        serving = other.submit(reading_server._serve, theirs, preprocess)
        with ours.makefile("rwb") as stream:
            assert stream.read(1) == reading_server.READY
            reading_server.send(stream, (paths, False))
            answer = reading_server.receive(stream)
        ours.shutdown(socket.SHUT_RDWR)
        serving.result(WAIT)
    return answer


def test_what_preprocessing_raises_is_the_answer(model, paths):
    error = answer_to(replace(model.preprocessor(), taken=(3, 48, 48)), paths[:2])
    assert isinstance(error, BadInput)
    assert "makes [3, 64, 64] of an image, the vision tower takes [3, 48, 48]" in str(error)


def test_an_error_that_cannot_be_sent_says_what_it_was(paths):
    error = answer_to(failing, paths[:2])
    assert (type(error), str(error)) == (RuntimeError, "Picky: not today")


def test_an_answer_that_is_an_error_is_raised(model, paths):
    ours, theirs = socket.socketpair()
    processes = ReadingProcesses(on_accelerator(model), 1)
    with ours, theirs, ours.makefile("rwb") as stream, theirs.makefile("rwb") as other, processes:
        processes._ready.put(stream)
        reading_server.send(other, BadInput("it does not fit"))
        with pytest.raises(BadInput, match="it does not fit"):
            processes.read(paths, False)
        reading_server.send(other, [None])
        assert processes.read(paths[:1], False) == {paths[0]: None}  # the process is asked again


@pytest.mark.usefixtures("at_once")
def test_what_cannot_be_sent_is_read_by_threads(model, paths, caplog):
    caplog.set_level(logging.INFO, "uwm")
    own = on_accelerator(model, preprocessor=lambda: lambda images: images)
    (found,) = pixels.pixel_batches(own, [paths], 2)
    assert torch.equal(found, next(pixels.pixel_batches(model, [paths], 2)))
    assert "images are read by threads: no process for it could be begun (Can't pickle" in caplog.text


def test_images_without_files_are_for_threads(model):
    with ReadingProcesses(on_accelerator(model), 1) as processes:
        processes._ready.put(None)  # would be asked
        assert processes.read([lambda: Image.new("RGB", (70, 70), "red")], False) is None


@pytest.mark.usefixtures("at_once")
def test_the_end_of_a_process_is_told_and_the_others_end_too(model, paths):
    with ReadingProcesses(on_accelerator(model), 2) as processes:
        assert len(processes.read(paths[:3], False)) == 3
        server = processes._server.pid
        readers = children(server)
        assert len(readers) == 2
        os.kill(readers[1], signal.SIGKILL)
        assert gone(readers[1])
        with pytest.raises(ResourceFault, match=r"was ended; it may have run out of memory: try fewer --workers"):
            [processes.read(paths[:3], False) for _ in readers]
        assert len(processes.read(paths[:3], True)) == 3  # by the other, or by none
    assert all(map(gone, (server, *readers)))


def test_nothing_is_begun_for_little_work(model, paths, monkeypatch):
    begun = []
    monkeypatch.setattr(ReadingProcesses, "_start", begun.append)
    assert len(next(pixels.pixel_batches(on_accelerator(model), [paths], 2))) == len(paths)
    assert begun == []


@pytest.mark.parametrize("python", ["", "/nowhere/python"])
def test_without_a_python_to_begin_threads_read(model, paths, monkeypatch, caplog, python):
    caplog.set_level(logging.INFO, "uwm")
    monkeypatch.setattr(reading_processes, "AFTER", 0)
    monkeypatch.setattr(sys, "executable", python)
    assert len(next(pixels.pixel_batches(on_accelerator(model), [paths], 2))) == len(paths)
    assert ("no process for it could be begun" in caplog.text) == bool(python)


def test_a_pass_that_ends_while_processes_load_leaves_none(model, paths, monkeypatch):
    begun = []
    begin = reading_processes._begun
    monkeypatch.setattr(reading_processes, "_begun", lambda sockets: begun.append(begin(sockets)) or begun[0])
    monkeypatch.setattr(reading_processes, "AFTER", 0)
    made = pixels.pixel_batches(on_accelerator(model), [paths, paths], 2)
    next(made)
    while not begun:
        time.sleep(0.01)
    made.close()
    assert begun[0].returncode == -signal.SIGKILL


PROGRAM = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from torchvision.transforms.functional import to_tensor
from uwm.models.preprocessors import Transforms
from uwm.statistics import reading_processes

reading_processes.AFTER = 0
model = SimpleNamespace(preprocessor=lambda: Transforms(to_tensor))
with reading_processes.ReadingProcesses(model, 2) as processes:  # without a test of __name__, as in many a script
    processes.read([Path(sys.argv[1])], False)
    processes._starter.join()
    try:
        print(processes._server.pid, flush=True)
        time.sleep(600)
    except KeyboardInterrupt:
        print(len(processes.read([Path(sys.argv[1])], False)), "read after Ctrl-C")
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_they_end_with_the_program_whatever_ends_it(number, paths, tmp_path):
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    program = subprocess.Popen(
        [sys.executable, file, paths[0]],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    server = int(program.stdout.readline())
    readers = children(server)
    assert len(readers) == 2
    os.killpg(program.pid, number)  # as a terminal's Ctrl-C, which all of its processes hear
    out, err = program.communicate(timeout=WAIT)
    assert out == ("1 read after Ctrl-C\n" if number == signal.SIGINT else "")
    assert err == ""
    assert all(map(gone, (server, *readers)))
