"""Single rows through the program: exit code, one line that names file and fault, nothing lost and nothing left."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from terminal import bytes_below, refused
from tiny_files import safetensors_bytes

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DATA = bytes(8)
TWICE = f'{{"a": {json.dumps(ENTRY)}, "a": {json.dumps(ENTRY)}}}'
METADATA = f'{{"__metadata__": {{"k": "1", "k": "2"}}, "a": {json.dumps(ENTRY)}}}'
FILES = {
    "f01 empty": (b"", "too short for a safetensors file (0 bytes)"),
    "f01 short": (b"\1\0\0", "(3 bytes)"),
    "f02 cut header": (safetensors_bytes({"a": ENTRY}, DATA)[:20], "model.safetensors"),
    "f02 cut data": (safetensors_bytes({"a": ENTRY}, DATA)[:-1], "model.safetensors"),
    "f04 length": (safetensors_bytes({"a": ENTRY}, DATA, length=2**63), "model.safetensors"),
    "f06 tensor twice": (safetensors_bytes(TWICE, DATA), "duplicate key 'a'"),
    "f07 metadata twice": (safetensors_bytes(METADATA, DATA), "duplicate key 'k'"),
    "f08 overlap": (safetensors_bytes({"a": ENTRY, "b": ENTRY}, DATA), "overlap"),
    "f08 hole": (safetensors_bytes({"a": ENTRY}, DATA + b"x"), "model.safetensors"),
    "f10 metadata": (safetensors_bytes({"__metadata__": ENTRY}, DATA), "__metadata__"),
    "f12 no tensors": (safetensors_bytes({}), "no tensors"),
    "f13 LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "LFS"),
    "f13 HTML": (b"<!DOCTYPE html><html></html>", "HTML"),
    "f13 JSON": (b'{"weight_map": {}}', "JSON"),
}


@pytest.mark.parametrize("name", FILES)
def test_f01_f02_f04_f06_f07_f08_f10_f12_f13_a_file_that_is_no_checkpoint(name, source, made, out, run_uwm):
    data, words = FILES[name]
    (source / "model.safetensors").write_bytes(data)
    before = bytes_below(source.parent)
    refused(run_uwm("apply", source, made / "patch.safetensors", "-o", out), 2, "model.safetensors", words)
    assert bytes_below(source.parent) == before


def test_f33_missing_tensors_are_named(tiny_hf, tiny_set, tmp_path, run_uwm):
    folder = shutil.copytree(tiny_hf, tmp_path / "in")
    state = load_file(folder / "model.safetensors")
    del state["vision_model.encoder.layers.1.layer_norm1.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    arguments = ("--calib", tiny_set, "-o", tmp_path / "s.safetensors")
    refused(run_uwm("score", folder, *arguments), 2, "vision_model.encoder.layers.1.layer_norm1.weight")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_f41_a_half_model_is_edited_exactly_and_alike_every_time(dtype, tiny_hf, tiny_set, tmp_path, run_uwm):
    folder = shutil.copytree(tiny_hf, tmp_path / "in")
    before = {name: t.to(dtype) for name, t in load_file(folder / "model.safetensors").items()}
    save_file(before, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("a", "b"):
        code, _, _ = run_uwm("edit", folder, "--calib", tiny_set, "-o", tmp_path / name, "-q", "--beside", "none")
        assert code == 0
    after, again = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    changed = [name for name in before if not torch.equal(after[name], before[name])]
    assert changed
    for name, value in before.items():
        assert after[name].dtype == dtype
        assert torch.equal(after[name], again[name])
        assert torch.equal(after[name].abs(), value.abs())
