"""The work that a run keeps: found by the same run alone, believed if this user's uwm wrote it, small, short-lived."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from stopping import kept

from uwm import unfinished
from uwm.statistics import sums
from uwm.statistics.embeddings import PairEmbeddings
from uwm.statistics.going_on import kept_rows
from uwm.unfinished import Entry, Unfinished, is_kept

RUN, NAME = "0" * 64, "1" * 64


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """A cache of the test's own."""
    monkeypatch.setenv("UWM_EMBEDDINGS_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_run_of_before_makes_no_promise(store):
    begun = time.monotonic()
    store().put(NAME, Entry({"rows": torch.ones(1)}))
    assert is_kept(begun)
    assert not is_kept(time.monotonic())
    store().remove()
    assert not is_kept(begun)


@pytest.fixture
def store(cache):
    def again():
        return Unfinished(cache / "unfinished", RUN, every=0.0)

    return again


def test_what_was_kept_is_found_by_the_next_run_alone(store):
    first = store()
    first.put(NAME, Entry({"rows": torch.arange(6.0).reshape(2, 3)}, {"batches": 2}))
    assert first.get(NAME) is None  # it began with nothing
    found = store().get(NAME)
    assert found.tensors["rows"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found.about == {"batches": 2}
    assert store().get("2" * 64) is None


def embed_and_stop(store, count, every):
    """The rows that are there; then those up to `count` are made, and kept after every so many batches."""
    rows = kept_rows(SimpleNamespace(unfinished=store(), edited=()), "text", [(f"{n} dogs",) for n in range(6)])
    found = [row.item() for row in rows.found]
    for number in range(len(found), count):
        with mock.patch.object(Unfinished, "is_due", lambda *_, due=(number + 1) % every == 0: due):
            rows.add(torch.tensor([[float(number)]]))
    return found


def test_embeddings_whose_first_part_was_lost_are_no_others(store, cache):
    embed_and_stop(store, 4, every=2)
    oldest = min(kept(cache), key=lambda file: (file.suffix != ".safetensors", file.stat().st_mtime_ns))
    oldest.unlink()
    assert embed_and_stop(store, 3, every=3) == []
    assert embed_and_stop(store, 5, every=2) == [0, 1, 2]
    assert embed_and_stop(store, 0, every=1) == [0, 1, 2, 3]


def test_small_work_waits_for_the_next_that_is_kept(store, cache):
    first = store()
    first.later(NAME, Entry({"rows": torch.ones(1)}))
    assert kept(cache) == []
    first.put("2" * 64, Entry({"rows": torch.zeros(1)}))
    assert store().get(NAME).tensors["rows"].tolist() == [1]


def forge(file):
    held = load_file(file)
    with open(file, "rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        about = json.loads(stream.read(size))["__metadata__"]
    save_file({name: tensor + 1 for name, tensor in held.items()}, file, metadata=about)


def cut(file):
    file.write_bytes(file.read_bytes()[:-1])


def another_name(file):
    file.rename(file.with_name("3" * 64 + ".safetensors"))


def another_secret(file):
    secret = file.parents[2] / "unfinished.key"
    secret.write_bytes(bytes(32))


@pytest.mark.parametrize("spoil", [forge, cut, another_name, another_secret], ids=lambda spoil: spoil.__name__)
def test_what_another_wrote_is_not_believed(spoil, store, cache):
    store().put(NAME, Entry({"rows": torch.ones(3)}))
    (file,) = [path for path in kept(cache) if path.suffix == ".safetensors"]
    spoil(file)
    assert store().get(NAME) is None
    assert store().get("3" * 64) is None


def test_a_disk_that_is_full_stops_nothing(store, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unfinished.Signer, "write", full)
    store().put(NAME, Entry({"rows": torch.ones(3)}))


def test_a_cache_that_may_not_be_read_stops_nothing(store, monkeypatch):
    store().put(NAME, Entry({"rows": torch.ones(3)}))
    monkeypatch.setattr(Path, "iterdir", mock.Mock(side_effect=PermissionError(13, "Permission denied")))
    assert not store().goes_on
    store().remove()


def test_old_and_large_work_goes_and_nothing_else(store, cache, monkeypatch):
    store().put(NAME, Entry({"rows": torch.ones(3)}))
    foreign = cache / "unfinished" / "notes.txt"
    foreign.write_text("mine")
    (file,) = [path for path in kept(cache) if path.suffix == ".safetensors"]
    os.utime(file, (1, 1))
    Unfinished(cache / "unfinished", "4" * 64, every=0.0).put(NAME, Entry({"rows": torch.ones(3)}))
    assert not file.parent.exists()
    monkeypatch.setattr(unfinished, "MAX_BYTES", 2600)
    for name, values in (("5", 301), ("6", 300), ("7", 900)):  # the last one alone is over half of it
        Unfinished(cache / "unfinished", name * 64, every=0.0).put(NAME, Entry({"rows": torch.ones(values)}))
        for path in kept(cache):
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 10))
    assert [run.name for run in (cache / "unfinished").iterdir() if run.is_dir()] == ["6" * 64]
    assert foreign.read_text() == "mine"


def test_a_folder_of_another_that_is_linked_is_left_alone(store, cache, tmp_path):
    store().put(NAME, Entry({"rows": torch.ones(3)}))
    shutil.move(cache / "unfinished" / RUN, tmp_path / "elsewhere")
    (cache / "unfinished" / RUN).symlink_to(tmp_path / "elsewhere")
    assert not store().goes_on
    store().remove()
    assert len([*(tmp_path / "elsewhere").iterdir()]) == 1


def test_a_forked_process_keeps_nothing(store):
    here = store()
    assert here.is_due()
    child = os.fork()
    if not child:
        os._exit(here.is_due())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_writing_takes_a_small_share_of_the_time(store, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(unfinished.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Unfinished, "_write", lambda *_: now.__setitem__(0, now[0] + 10))
    here = store()
    here.put(NAME, Entry({}))
    now[0] += 199
    assert not here.is_due()
    now[0] += 2
    assert here.is_due()
    now[0] += 5  # to gather it from a GPU
    here.put(NAME, Entry({}))
    now[0] += 299
    assert not here.is_due()
    now[0] += 2
    assert here.is_due()


def test_a_subclass_does_not_take_over_the_sums_of_its_base():
    """It may sum up more than they name."""

    class Counting(PairEmbeddings):
        def join(self, item):
            super().join(item)
            self.count = getattr(self, "count", 0) + 1

    class Telling(Counting):
        SUMS = (*PairEmbeddings.SUMS, "count")

    assert sums.can_be_told([PairEmbeddings(), Telling()])
    assert not sums.can_be_told([PairEmbeddings(), Counting()])
