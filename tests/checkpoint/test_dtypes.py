"""Types whose values are smaller than a byte: read as the library reads them, copied, compared, and never edited."""

from __future__ import annotations

import itertools

import pytest
import safetensors
import torch
from random_patches import patch_of
from safetensors.torch import save_file
from terminal import done, refused
from test_sources import sharded
from tiny_files import add_tensors, hf_state, safetensors_bytes
from torch_files import pickle_bytes, tensor, torch_zip

import uwm
from uwm.checkpoint import open_checkpoint
from uwm.checkpoint.dtypes import PACKED
from uwm.checkpoint.header import read_header
from uwm.errors import BadInput
from uwm.weights import WeightId

SHAPES = {"F4": [2, 6], "F6_E2M3": [2, 4], "F6_E3M2": [4, 2]}  # of six bytes
RAW = bytes(range(250, 256))
FC2 = "vision_model.encoder.layers.1.mlp.fc2.weight"  # [4, 6], the one that patch_of edits


@pytest.mark.parametrize("dtype", SHAPES)
def test_what_is_taken_is_what_safetensors_takes_with_its_shape_and_bytes(tmp_path, dtype):
    path, taken, tried = tmp_path / "t.safetensors", 0, 0
    sizes = [*itertools.product(range(6), repeat=2), *((n,) for n in range(6)), ()]
    for shape, nbytes in itertools.product(sizes, range(0, 20)):
        entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, nbytes]}
        data = safetensors_bytes({"t": entry}, bytes(range(nbytes)))
        theirs = _taken(lambda data=data: safetensors.deserialize(data)[0][1], safetensors.SafetensorError)
        path.write_bytes(data)
        ours = _taken(lambda: _alone(path), BadInput)
        assert (ours is None) == (theirs is None), (shape, nbytes)
        tried += 1
        if ours is not None:
            taken += 1
            assert ours == (theirs["shape"], bytes(theirs["data"]))
    assert 10 < taken < tried / 10


def _taken(read, refusal):
    try:
        return read()
    except refusal:
        return None


def _alone(path):
    """Shape and bytes of the tensor of a file that has no other."""
    with path.open("rb") as stream:
        _, entries = read_header(stream, path.stat().st_size, "x")
        return entries["t"]["shape"], stream.read()


def test_a_tensor_that_ends_within_a_byte_is_refused_by_name(source):
    add_tensors(source / "model.safetensors", {"odd": ("F4", [3], b"\0")})
    with pytest.raises(BadInput, match=r"model\.safetensors: tensor 'odd' of shape \[3\] and F4 ends within a byte"):
        open_checkpoint(source)


@pytest.mark.parametrize("dtype", SHAPES)
def test_f11_a_tensor_of_less_than_a_byte_a_value_goes_through_every_verb_of_files(source, tmp_path, run_uwm, dtype):
    patch_of(source).save(tmp_path / "p")
    add_tensors(source / "model.safetensors", {"packed": (dtype, SHAPES[dtype], RAW)})
    assert "fc2" in done(run_uwm("inspect", source))
    assert open_checkpoint(source).shapes()["packed"] == tuple(SHAPES[dtype])
    done(run_uwm("apply", source, tmp_path / "p", "-o", tmp_path / "out"))
    assert [*uwm.diff(source, tmp_path / "out")] == [FC2]
    done(run_uwm("revert", tmp_path / "out", tmp_path / "p", "-o", tmp_path / "back"))
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def test_f11_a_tensor_of_less_than_a_byte_a_value_is_copied_in_a_shard(source, tmp_path, run_uwm):
    state = hf_state() | {"packed": torch.zeros(6, dtype=torch.uint8)}
    folder = tmp_path / "shards"
    place = sharded(folder, state)
    patch_of(source).save(tmp_path / "p")
    add_tensors(folder / place["packed"], {"packed": ("F6_E2M3", [2, 4], RAW)}, without=("packed",))
    done(run_uwm("apply", folder, tmp_path / "p", "-o", tmp_path / "out"))
    assert open_checkpoint(tmp_path / "out").bits("packed").array.tobytes() == RAW
    assert [*uwm.diff(folder, tmp_path / "out")] == [FC2]


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3"])
def test_f11_a_patch_that_names_such_a_tensor_is_refused_and_nothing_is_written(source, tmp_path, run_uwm, dtype):
    patch_of(source).save(tmp_path / "p")
    raw = bytes(PACKED[dtype].nbytes((4, 6)))
    add_tensors(source / "model.safetensors", {FC2: (dtype, [4, 6], raw)}, without=(FC2,))
    name = PACKED[dtype].name
    for verb in ("apply", "revert"):
        result = run_uwm(verb, source, tmp_path / "p", "-o", tmp_path / "out")
        refused(result, 2, f"{source}: vision.1.fc2 is {name}, quantised; edit the float checkpoint first")
    assert not (tmp_path / "out").exists()
    checkpoint = open_checkpoint(source)
    for read in (lambda: checkpoint.read(FC2), lambda: checkpoint.matrix(WeightId("vision", 1, "fc2"))):
        with pytest.raises(BadInput, match=f"{FC2} is {name}, quantised"):
            read()


@pytest.mark.parametrize("dtype", SHAPES)
def test_of_such_a_tensor_the_bytes_that_differ_are_counted(source, tmp_path, dtype):
    sides = [tmp_path / name for name in ("one.safetensors", "other.safetensors")]
    for path, raw in zip(sides, (RAW, RAW[:4] + b"\0\1"), strict=True):
        path.write_bytes((source / "model.safetensors").read_bytes())
        add_tensors(path, {"packed": (dtype, SHAPES[dtype], raw)})
    assert uwm.diff(*sides) == {"packed": {"differ": 2, "negated": 0, "of": 6}}
    assert uwm.diff(sides[0], sides[0]) == {}


def test_such_a_tensor_is_not_compared_with_one_of_another_type(source, tmp_path):
    """Both are of one shape."""
    sides = [tmp_path / name for name in ("one.safetensors", "other.safetensors")]
    for path, dtype, raw in zip(sides, ("F32", "F4"), (bytes(16), bytes(2)), strict=True):
        path.write_bytes((source / "model.safetensors").read_bytes())
        add_tensors(path, {"packed": (dtype, [4], raw)})
    with pytest.raises(BadInput, match=r"other\.safetensors: packed is float4_e2m1fn_x2, which is only compared with"):
        uwm.diff(*sides)


@pytest.mark.parametrize("dtype", ["BOOL", "F8_E8M0"])
def test_no_byte_of_a_type_without_a_sign_is_minus_one_times_another(source, tmp_path, dtype):
    sides = [tmp_path / name for name in ("one.safetensors", "other.safetensors")]
    for path, raw in zip(sides, (b"\1\1", b"\xff\0"), strict=True):
        path.write_bytes((source / "model.safetensors").read_bytes())
        add_tensors(path, {"more": (dtype, [2], raw)})
    assert uwm.diff(*sides) == {"more": {"differ": 2, "negated": 0, "of": 2}}


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="this torch has no float4")
@pytest.mark.parametrize("turned", [False, True])
def test_a_torch_file_s_float4_becomes_what_safetensors_makes_of_it(tmp_path, run_uwm, turned):
    """Torch counts pairs of values, and the format counts values."""
    pairs = torch.arange(6, dtype=torch.uint8).reshape(2, 3).view(torch.float4_e2m1fn_x2)
    torch.save(hf_state() | {"packed": pairs.T if turned else pairs}, tmp_path / "m.pt")
    save_file({"packed": pairs.T.contiguous() if turned else pairs}, tmp_path / "theirs.safetensors")
    patch_of(tmp_path / "m.pt").save(tmp_path / "p")
    done(run_uwm("apply", tmp_path / "m.pt", tmp_path / "p", "-o", tmp_path / "out"))
    (written,) = (tmp_path / "out").glob("m*.safetensors")
    with (
        safetensors.safe_open(written, "pt") as ours,
        safetensors.safe_open(tmp_path / "theirs.safetensors", "pt") as t,
    ):
        assert ours.get_slice("packed").get_shape() == t.get_slice("packed").get_shape()
        one, other = (file.get_tensor("packed").view(torch.uint8) for file in (ours, t))
        assert torch.equal(one, other)


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="this torch has no float4")
def test_a_torch_file_s_float4_without_dimensions_is_refused(tmp_path):
    """It is a pair of values, for which the format has no shape."""
    lone = torch.zeros(1, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)[0]
    torch.save(hf_state() | {"lone": lone}, tmp_path / "m.pt")
    with pytest.raises(BadInput, match=r"torch\.float4_e2m1fn_x2 scalar tensors cannot be written as safetensors"):
        open_checkpoint(tmp_path / "m.pt")


def test_the_library_reads_the_other_tensors_beside_one(source):
    """It opens the file, and has no torch type of six bits."""
    path = source / "model.safetensors"
    add_tensors(path, {"packed": ("F6_E2M3", [4], RAW[:3])})
    with safetensors.safe_open(path, "pt") as file:
        kept = {name: file.get_tensor(name) for name in file.keys() if name != "packed"}  # noqa: SIM118
    ours = open_checkpoint(source)
    assert all(torch.equal(ours.read(name), tensor) for name, tensor in kept.items())


def test_a_torch_file_s_type_of_six_bits_is_refused_since_torch_has_none(tmp_path):
    """A forged pickle may name one, and nobody knows how its shape counts."""
    pickled = pickle_bytes({"packed": tensor(metadata=(torch.float64, {}))})
    pickled = pickled.replace(b"_rebuild_tensor_v2\n", b"_rebuild_tensor_v3\n").replace(b"float64\n", b"float6_e2m3\n")
    (tmp_path / "m.pt").write_bytes(torch_zip(pickled))
    with pytest.raises(BadInput, match=r"torch\.float6_e2m3 tensors cannot be written as safetensors"):
        open_checkpoint(tmp_path / "m.pt")
