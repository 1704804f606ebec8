"""Writing an edited copy: the planned entries differ as planned, every other byte is the input's."""

from __future__ import annotations

import hashlib
import json
import os
import resource

import pytest
import torch
from layouts_by_hand import to_open_clip
from random_patches import scale
from safetensors.torch import load_file, save_file
from tiny_files import BITS, bits, hf_folder, hf_state

from uwm.checkpoint import file_sha256, open_checkpoint, write_edited
from uwm.errors import InvalidResult, ResourceFault
from uwm.weights import WeightId

FC2, V_PROJ = WeightId("vision", 1, "fc2"), WeightId("text", 0, "v_proj")
PLAN = {FC2: scale(torch.tensor([0, 5, 23])), V_PROJ: scale(torch.tensor([1, 14]))}
PLANNED = {  # the same by tensor name
    "vision_model.encoder.layers.1.mlp.fc2.weight": [0, 5, 23],
    "text_model.encoder.layers.0.self_attn.v_proj.weight": [1, 14],
}
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(params=[None, 64], ids=["one piece", "many batches"])
def pieces(request, monkeypatch):
    """Bytes that are read and written at once, as they are or so few that a tiny file takes many batches."""
    if request.param:
        monkeypatch.setattr("uwm.checkpoint.reader.CHUNK", request.param)
        monkeypatch.setattr("uwm.checkpoint.writer.CHUNK", request.param)


def sign(dtype):
    return torch.iinfo(BITS[dtype.itemsize]).min


def written(source, plan, folder):
    folder.mkdir()
    hashes = write_edited(open_checkpoint(source), plan, folder)
    return hashes, load_file(folder / next(iter(hashes)))


def assert_only_signs_differ(before, after, flipped):
    """`flipped`: tensor name -> flat indices; nothing else may differ, by a single bit."""
    assert before.keys() == after.keys()
    for name, old in before.items():
        new = after[name]
        assert (new.dtype, new.shape) == (old.dtype, old.shape)
        changed = (bits(old) ^ bits(new)).flatten()
        assert changed.nonzero().flatten().tolist() == flipped.get(name, [])
        assert all(int(value) == sign(old.dtype) for value in changed[changed != 0])


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("dtype", FLOATS)
def test_only_the_signs_of_the_planned_entries_differ(tmp_path, dtype):
    source = hf_folder(tmp_path / "in", dtype=dtype)
    _, after = written(source, PLAN, tmp_path / "out")
    assert_only_signs_differ(load_file(source / "model.safetensors"), after, PLANNED)


@pytest.mark.usefixtures("pieces")
def test_in_a_fused_tensor_only_the_weights_own_rows_change(tmp_path):
    save_file(to_open_clip(hf_state()), tmp_path / "in.safetensors")
    slots = ("q_proj", "k_proj", "v_proj")
    plan = {WeightId("text", 0, slot): scale(torch.tensor([n, 15])) for n, slot in enumerate(slots)}
    _, after = written(tmp_path / "in.safetensors", plan, tmp_path / "out")
    flipped = {"transformer.resblocks.0.attn.in_proj_weight": [0, 15, 16 + 1, 16 + 15, 32 + 2, 32 + 15]}
    assert_only_signs_differ(load_file(tmp_path / "in.safetensors"), after, flipped)


def test_f32_the_file_is_the_input_s_but_for_the_planned_bytes(tmp_path):
    source = hf_folder(tmp_path / "in")
    written(source, {V_PROJ: scale(torch.tensor([3]))}, tmp_path / "out")
    before, after = ((tmp_path / side / "model.safetensors").read_bytes() for side in ("in", "out"))
    assert len(before) == len(after)
    differ = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    assert len(differ) == 1
    assert before[differ[0]] ^ after[differ[0]] == 0x80


def test_without_edits_the_copy_is_identical(tmp_path):
    source = hf_folder(tmp_path / "in")
    written(source, {}, tmp_path / "out")
    assert file_sha256(tmp_path / "out" / "model.safetensors") == file_sha256(source / "model.safetensors")


def test_the_hashes_are_those_of_the_files_and_two_writes_are_identical(tmp_path):
    source = hf_folder(tmp_path / "in")
    first, _ = written(source, PLAN, tmp_path / "one")
    second, _ = written(source, dict(reversed(PLAN.items())), tmp_path / "two")
    assert first == second
    data = (tmp_path / "one" / "model.safetensors").read_bytes()
    assert first == {"model.safetensors": hashlib.sha256(data).hexdigest()}
    assert file_sha256(tmp_path / "two" / "model.safetensors") == first["model.safetensors"]


def test_side_files_are_copied_and_the_input_is_untouched(tmp_path):
    source = hf_folder(tmp_path / "in")
    before = {p: p.read_bytes() for p in source.rglob("*") if p.is_file()}
    written(source, PLAN, tmp_path / "out")
    assert before == {p: p.read_bytes() for p in source.rglob("*") if p.is_file()}
    for name in ("config.json", "tokenizer/vocab.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


def test_what_stands_beside_a_bare_file_stays_there(tmp_path):
    source = hf_folder(tmp_path / "in")
    written(source / "model.safetensors", PLAN, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["model.safetensors"]


def test_f43_scalars_empty_tensors_and_foreign_types_are_copied(tmp_path):
    state = hf_state() | {
        "logit_scale": torch.tensor(4.6), "none": torch.zeros(0, 3), "ids": torch.arange(5),
        "complex": torch.tensor([1 + 2j]), "mask": torch.tensor([True]),
        "eight": torch.tensor([1.0, -2.0]).to(torch.float8_e4m3fn),
    }  # fmt: skip
    source = hf_folder(tmp_path / "in", state)
    _, after = written(source, {V_PROJ: scale(torch.tensor([3]))}, tmp_path / "out")
    assert_only_signs_differ(state, after, {"text_model.encoder.layers.0.self_attn.v_proj.weight": [3]})


def test_shards_stay_shards(tmp_path):
    source = hf_folder(tmp_path / "in")
    state = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    names = sorted(state)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for name, keys in halves.items():
        save_file({key: state[key] for key in keys}, source / name)
    index = {"weight_map": {key: name for name, keys in halves.items() for key in keys}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    hashes, _ = written(source, PLAN, tmp_path / "out")
    after = {key: tensor for name in halves for key, tensor in load_file(tmp_path / "out" / name).items()}
    assert hashes == {name: file_sha256(tmp_path / "out" / name) for name in halves}
    assert open_checkpoint(tmp_path / "out").weights == open_checkpoint(source).weights
    assert_only_signs_differ(state, after, PLANNED)


def test_a_pickle_becomes_a_safetensors_file_of_the_same_tensors(tmp_path):
    state = hf_state()
    torch.save(state, tmp_path / "in.pt")
    hashes, after = written(tmp_path / "in.pt", PLAN, tmp_path / "out")
    assert list(hashes) == ["model.safetensors"]
    assert_only_signs_differ(state, after, PLANNED)


def spoil(change):
    """A disk that harms a file of weights between writing it and reading it back."""
    sync = os.fsync

    def fsync(descriptor):
        sync(descriptor)
        change(f"/proc/self/fd/{descriptor}")

    return fsync


def flip_last_byte(path):
    with open(path, "r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last[0] ^ 1]))


def append(path):
    with open(path, "ab") as stream:
        stream.write(b"\0")


def cut(path):
    os.truncate(path, os.stat(path).st_size - 1)


@pytest.mark.parametrize(
    ("change", "says"), [(flip_last_byte, "not what was planned"), (append, "longer"), (cut, "not what was planned")]
)
def test_what_the_disk_spoils_is_noticed(tmp_path, monkeypatch, change, says):
    source = hf_folder(tmp_path / "in")
    monkeypatch.setattr(os, "fsync", spoil(change))
    (tmp_path / "out").mkdir()
    with pytest.raises(InvalidResult, match=says):
        write_edited(open_checkpoint(source), PLAN, tmp_path / "out")


@pytest.mark.parametrize("room", [5, 3000, 8000])
def test_a_full_disk_is_a_resource_fault(tmp_path, room):
    source = hf_folder(tmp_path / "in")
    assert (source / "model.safetensors").stat().st_size > 8000
    checkpoint = open_checkpoint(source)
    (tmp_path / "out").mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        with pytest.raises(ResourceFault, match="out: could not write: File too large"):
            write_edited(checkpoint, PLAN, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_input_that_shrinks_meanwhile_is_noticed(tmp_path):
    source = hf_folder(tmp_path / "in")
    checkpoint = open_checkpoint(source)
    cut(source / "model.safetensors")
    (tmp_path / "out").mkdir()
    with pytest.raises(ResourceFault, match="was written to while it was read"):
        write_edited(checkpoint, PLAN, tmp_path / "out")
