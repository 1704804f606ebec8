"""What was scored is what is written: an input that changes meanwhile ends the run with 4; nothing is written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import pytest
import torch
from random_patches import patch_of
from safetensors.torch import load_file
from terminal import ALL_OF_CALIB, done, refused
from tiny_files import hf_state

import uwm
from uwm.checkpoint import open_checkpoint, writer
from uwm.errors import ResourceFault


def overwritten(file):
    """One byte of the last tensor changes, and nothing else: size and times stay."""
    before = file.stat()
    with file.open("r+b") as stream:
        stream.seek(-2, 2)
        byte = stream.read(1)
        stream.seek(-2, 2)
        stream.write(bytes([byte[0] ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(file):
    """Another file of the same size takes the place of it."""
    other = file.with_name("other")
    shutil.copyfile(file, other)
    overwritten(other)
    other.rename(file)


def cut(file):
    os.truncate(file, file.stat().st_size - 3)


def removed(file):
    file.unlink()


CHANGES = [overwritten, replaced, cut, removed]


@pytest.fixture(params=["safetensors", "torch"])
def weights(request, source):
    """The file of weights of a folder, of either kind."""
    file = source / "model.safetensors"
    if request.param == "torch":
        torch.save(load_file(file), source / "pytorch_model.bin")
        file.unlink()
        file = source / "pytorch_model.bin"
    return file


def changed_before_writing(monkeypatch, change):
    """When the plan of what is written is made, all has been read that decides it."""
    plans = writer._plans

    def planned(*arguments):
        change()
        return plans(*arguments)

    monkeypatch.setattr(writer, "_plans", planned)


@pytest.mark.parametrize("verb", ["apply", "revert"])
@pytest.mark.parametrize("change", CHANGES)
def test_f73_an_input_that_changes_during_apply_and_revert(weights, out, tmp_path, run_uwm, monkeypatch, change, verb):
    patch_of(weights.parent).save(tmp_path / "p")
    source = weights.parent
    if verb == "revert":
        done(run_uwm("apply", source, tmp_path / "p", "-o", tmp_path / "edited"))
        source = tmp_path / "edited"
        weights = source / "model.safetensors"
    before = sorted(os.listdir(tmp_path))
    changed_before_writing(monkeypatch, lambda: change(weights))
    refused(run_uwm(verb, source, tmp_path / "p", "-o", out), 4, str(weights), "while it was read; nothing was written")
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("change", CHANGES)
def test_f73_an_input_that_changes_during_edit(tiny_hf, tiny_set, tmp_path, out, run_uwm, monkeypatch, change):
    source = shutil.copytree(tiny_hf, tmp_path / "in")
    changed_before_writing(monkeypatch, lambda: change(source / "model.safetensors"))
    flags = ("--calib", tiny_set, *ALL_OF_CALIB, "-q")
    refused(run_uwm("edit", source, *flags, "-o", out), 4, "model.safetensors", "while it was read")
    assert sorted(os.listdir(tmp_path)) == ["in"]


def test_f73_an_input_that_changes_while_it_is_scored(tiny_hf, tiny_set, tmp_path):
    source = shutil.copytree(tiny_hf, tmp_path / "in")
    model = uwm.load(source)
    pairs = uwm.read_calibration(tiny_set)
    overwritten(source / "model.safetensors")
    with pytest.raises(ResourceFault, match="was written to while it was read"):
        uwm.score(model, pairs)


def test_a_side_file_that_changes_meanwhile(source, out, tmp_path, run_uwm, monkeypatch):
    patch_of(source).save(tmp_path / "p")
    changed_before_writing(monkeypatch, lambda: (source / "config.json").write_text('{"model_type": "clip" }'))
    refused(run_uwm("apply", source, tmp_path / "p", "-o", out), 4, "config.json: changed while the model was read")
    assert not out.exists()


def test_a_side_file_that_was_replaced_by_one_of_equal_size_and_time(source):
    checkpoint, config = open_checkpoint(source), source / "config.json"
    before = config.stat()
    (source / "new").write_bytes(config.read_bytes())
    os.utime(source / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
    (source / "new").replace(config)
    with pytest.raises(ResourceFault, match="config.json: changed while the model was read"):
        checkpoint.demand_unchanged()


def test_a_file_of_another_hash_than_it_had_has_changed(source):
    held = open_checkpoint(source).files[0].held
    held.demand_unchanged("0" * 64)
    held.note("0" * 64)
    held.demand_unchanged("0" * 64)
    with pytest.raises(ResourceFault, match="was written to while it was read"):
        held.demand_unchanged("1" * 64)


def test_a_torch_file_written_to_after_it_was_hashed(tmp_path):
    """Its size and its time of writing are as before: what is read again decides, not the hash of the first reading."""
    path = tmp_path / "m.pt"
    torch.save(hf_state(), path, _use_new_zipfile_serialization=False)
    checkpoint, before = open_checkpoint(path), path.stat()
    checkpoint.file_hashes()
    with path.open("r+b") as stream:
        stream.seek(-16, 2)
        stream.write(bytes(16))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    (tmp_path / "to").mkdir()
    with pytest.raises(ResourceFault, match="was written to while it was read"):
        writer.write_edited(checkpoint, {}, tmp_path / "to")


def test_all_of_a_file_is_read_from_the_one_that_was_opened(weights, tmp_path):
    checkpoint = open_checkpoint(weights.parent)
    key = next(iter(checkpoint.entries))
    before = checkpoint.read(key)
    replaced(weights)
    weights.write_bytes(b"nothing")
    assert torch.equal(checkpoint.read(key), before)


def test_a_new_link_to_a_file_that_was_hashed_is_no_change(source, tmp_path):
    """As backups make them during a training of hours."""
    checkpoint = open_checkpoint(source)
    checkpoint.file_hashes()
    os.link(source / "model.safetensors", tmp_path / "backup")
    (tmp_path / "to").mkdir()
    writer.write_edited(checkpoint, {}, tmp_path / "to")


def test_f03_apply_and_revert_tell_the_hash_of_what_they_read(source, out, tmp_path, run_uwm):
    patch_of(source).save(tmp_path / "p")
    done(run_uwm("apply", source, tmp_path / "p", "-o", out))
    done(run_uwm("revert", out, tmp_path / "p", "-o", tmp_path / "back"))
    for read, written in ((source, out), (out, tmp_path / "back")):
        told = json.loads((written / "uwm.json").read_text())["model"]["sha256"]
        content = (read / "model.safetensors").read_bytes()
        assert told == {"model.safetensors": hashlib.sha256(content).hexdigest()}
