"""Our own files: exact, reproducible, of known kind and version, whole or not there."""

from __future__ import annotations

import json
import os
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_files import bits

from uwm import records
from uwm.errors import BadInput, ResourceFault

TENSORS = {
    "vision.0.fc2": torch.tensor([0, 5, 2**40]),
    "halves": torch.tensor([[1.0, -0.0], [float("nan"), 6e-8]], dtype=torch.float16),
    "strided": torch.arange(6.0).reshape(2, 3).T,
    "none": torch.zeros(0, dtype=torch.int64),
}
ABOUT = {"alpha": -1.0, "recipe": {"z": [1, None], "a": "é \u2028"}}


def write_raw(path, text):
    save_file({"a": torch.zeros(1)}, path, metadata={records.KEY: text})
    return path


def test_a_record_reads_back_bit_for_bit(tmp_path):
    records.write(tmp_path / "new" / "record", "patch", TENSORS, ABOUT)
    tensors, about = records.read(tmp_path / "new" / "record", "patch")
    assert about == {"kind": "patch", "format": 2, **ABOUT}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert (tensors[name].dtype, tensors[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(bits(tensors[name]), bits(tensor))


def test_equal_content_gives_equal_bytes_in_any_order(tmp_path):
    records.write(tmp_path / "a", "patch", TENSORS, ABOUT)
    records.write(tmp_path / "b", "patch", dict(reversed(TENSORS.items())), dict(reversed(ABOUT.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    records.write(tmp_path / "b", "patch", TENSORS, ABOUT | {"alpha": 0.5})
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()


def test_safetensors_itself_reads_a_record(tmp_path):
    records.write(tmp_path / "a", "patch", TENSORS, ABOUT)
    assert load_file(tmp_path / "a").keys() == TENSORS.keys()


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        records.write(tmp_path / "a", "patch", TENSORS, ABOUT)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask


def test_another_kind_is_refused(tmp_path):
    records.write(tmp_path / "a", "scores", TENSORS, ABOUT)
    with pytest.raises(BadInput, match="holds scores, expected patch"):
        records.read(tmp_path / "a", "patch")


@pytest.mark.parametrize("version", [0, 3, "1", None])
def test_an_unknown_format_version_is_refused(tmp_path, version):
    path = write_raw(tmp_path / "a", json.dumps({"kind": "patch", "format": version}))
    with pytest.raises(BadInput, match=f"format {version}, this uwm reads 1 and 2; update uwm"):
        records.read(path, "patch")


@pytest.mark.parametrize("text", ["", "{", "no json", "[" * 100_000])
def test_a_description_that_is_no_json_is_not_ours(tmp_path, text):
    with pytest.raises(BadInput, match="not a file that uwm wrote"):
        records.read(write_raw(tmp_path / "a", text), "patch")


@pytest.mark.parametrize("text", ["[]", "3", '"patch"', "null"])
def test_a_description_that_is_no_object_is_not_ours(tmp_path, text):
    with pytest.raises(BadInput, match="not a file that uwm wrote"):
        records.read(write_raw(tmp_path / "a", text), "patch")


def test_other_files_are_not_ours(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign", metadata={"format": "pt"})
    save_file({"a": torch.zeros(1)}, tmp_path / "bare")
    (tmp_path / "page").write_text("<html>")
    (tmp_path / "empty").touch()
    for name in ("foreign", "bare", "page", "empty"):
        assert records.describe(tmp_path / name) is None
        with pytest.raises(BadInput, match=rf"{name}: not a file that uwm wrote; expected scores"):
            records.read(tmp_path / name, "scores")


@pytest.mark.parametrize("name", ["missing", "."])
def test_what_is_no_file_is_refused(tmp_path, name):
    with pytest.raises(BadInput, match="no such file"):
        records.read(tmp_path / name, "patch")


def test_every_cut_is_refused(tmp_path):
    records.write(tmp_path / "a", "patch", {"x": torch.arange(3)}, {})
    data = (tmp_path / "a").read_bytes()
    for length in range(len(data)):
        (tmp_path / "b").write_bytes(data[:length])
        with pytest.raises(BadInput):
            records.read(tmp_path / "b", "patch")


def test_a_failed_write_leaves_the_old_record_and_nothing_else(tmp_path, monkeypatch):
    records.write(tmp_path / "a", "patch", TENSORS, ABOUT)
    before = (tmp_path / "a").read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceFault, match="a: could not write: No space left on device"):
        records.write(tmp_path / "a", "patch", {}, {})
    assert (tmp_path / "a").read_bytes() == before
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_that_is_a_file_is_a_resource_fault(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceFault, match="could not write"):
        records.write(tmp_path / "file" / "a", "patch", TENSORS, ABOUT)


def test_json_for_people_has_lists_of_numbers_on_one_line():
    value = {"a": [1, -2.5, None], "b": ["[\n1\n]", "x"], "c": [], "d": [[1, 2], [3]], "e": {"f": 1e-9, "g": "[ 1 ]"}}
    text = records.to_json(value)
    assert json.loads(text) == value
    assert '"a": [1, -2.5, null],' in text
    assert "\n    [1, 2],\n    [3]\n" in text
