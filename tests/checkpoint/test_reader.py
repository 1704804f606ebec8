"""Opening checkpoints: what is read is what is stored, and hostile files are refused without running or crashing."""

from __future__ import annotations

import os
import struct

import pytest
import torch
from layouts_by_hand import to_open_clip
from safetensors.torch import load_file, save_file
from tiny_files import bits, hf_folder, hf_state, safetensors_bytes

from uwm.checkpoint import open_checkpoint
from uwm.errors import BadInput
from uwm.weights import WeightId

FC2, V_PROJ = WeightId("vision", 1, "fc2"), WeightId("text", 0, "v_proj")


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(bits(found[name]), bits(tensor.detach()))


def pickled(path, content, **options):
    torch.save(content, path, **options)
    return path


# ---------------------------------------------------------------- safetensors


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_tensor_reads_back_as_safetensors_reads_it(tmp_path, dtype):
    state = hf_state(dtype) | {"ids": torch.arange(3), "mask": torch.tensor([True, False])}
    folder = hf_folder(tmp_path / "in", state)
    assert_same(open_checkpoint(folder).state_dict(), load_file(folder / "model.safetensors"))
    assert_same(open_checkpoint(folder / "model.safetensors").state_dict(), state)


def test_a_tensor_without_entries_is_read(tmp_path):
    state = hf_state() | {"none": torch.zeros(0, 3)}
    assert_same(open_checkpoint(hf_folder(tmp_path / "in", state)).state_dict(), state)


def test_a_weight_is_its_own_rows_and_fingerprint_whatever_the_spelling(tmp_path):
    state = hf_state()
    hf = open_checkpoint(hf_folder(tmp_path / "in", state))
    save_file(to_open_clip(state), tmp_path / "fused.safetensors")
    fused = open_checkpoint(tmp_path / "fused.safetensors")
    assert torch.equal(fused.matrix(V_PROJ), state["text_model.encoder.layers.0.self_attn.v_proj.weight"])
    prints = {weight: hf.fingerprint(weight) for weight in hf.weights}
    assert prints == {weight: fused.fingerprint(weight) for weight in fused.weights}
    assert len(set(prints.values())) == len(prints) == 24


def test_a_fingerprint_sees_one_bit(tmp_path):
    state = hf_state()
    before = open_checkpoint(hf_folder(tmp_path / "a", state)).fingerprint(FC2)
    bits(state["vision_model.encoder.layers.1.mlp.fc2.weight"])[0, 0] ^= 1
    after = open_checkpoint(hf_folder(tmp_path / "b", state))
    assert after.fingerprint(FC2) != before
    assert open_checkpoint(tmp_path / "a").fingerprint(V_PROJ) == after.fingerprint(V_PROJ)


@pytest.mark.parametrize("low", [0x80, 0x4B50, 0x280, 0x3C20, 0x7B20])
def test_safetensors_are_told_by_content_whatever_their_header_s_length(tmp_path, low):
    folder = hf_folder(tmp_path / "in")
    data = (folder / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    wider = low + (max(0, length - low) // 2**16 + 1) * 2**16 if low > 0xFF else low + (length // 256 + 1) * 256
    header = data[8 : 8 + length].ljust(wider)
    (folder / "model.safetensors").write_bytes(safetensors_bytes(header, data[8 + length :]))
    (folder / "model.safetensors").rename(folder / "blob")
    checkpoint = open_checkpoint(folder / "blob")
    assert_same(checkpoint.state_dict(), hf_state())
    assert checkpoint.files[0].pickled is None  # its own header and order are kept


def test_every_cut_is_bad_input(tmp_path):
    data = (hf_folder(tmp_path / "in") / "model.safetensors").read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in (*range(200), *range(200, len(data), 97), len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(BadInput, match=r"cut\.safetensors"):
            open_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "0 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git-LFS pointer"),
        (b"<!DOCTYPE html><title>Entry not found</title>", "HTML"),
        (b'{"error": "Repository not found"}', "JSON"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "no safetensors file"),
        (safetensors_bytes({"fc": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"a"), "not a CLIP-like"),
    ],
)  # fmt: skip
def test_other_files_are_bad_input_and_named(tmp_path, content, says):
    (tmp_path / "model.safetensors").write_bytes(content)
    for path in (tmp_path / "model.safetensors", tmp_path):
        with pytest.raises(BadInput, match=says):
            open_checkpoint(path)


def test_what_is_no_file_is_bad_input(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "x.safetensors").mkdir()
    says = {"pipe": "not a regular file", "loop": "no such", "dangling": "no such", "missing": "no such",
            "x.safetensors": "no weights in this folder", "/dev/zero": "not a regular file"}  # fmt: skip
    for name, expected in says.items():
        with pytest.raises(BadInput, match=expected):
            open_checkpoint(tmp_path / name)


# ---------------------------------------------------------------- folders


def test_side_files_are_everything_but_weights_and_our_own_outputs(tmp_path):
    folder = hf_folder(tmp_path / "in")
    for name in (
        "uwm.json",
        "README.md",
        "report.html",
        "uwm_patch.safetensors",
        "old.bin",
        ".gitattributes",
        "merges.txt",
    ):
        (folder / name).touch()
    (folder / ".cache").mkdir()
    (folder / ".cache" / "lock.txt").touch()
    assert list(map(str, open_checkpoint(folder).side_files)) == ["config.json", "merges.txt", "tokenizer/vocab.json"]


def test_safetensors_come_before_a_pickle(tmp_path):
    folder = hf_folder(tmp_path / "in")
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    assert [file.name for file in open_checkpoint(folder).files] == ["model.safetensors"]


def test_files_behind_links_are_read_as_in_the_hub_s_cache(tmp_path):
    (tmp_path / "blobs").mkdir()
    save_file(hf_state(), tmp_path / "blobs" / "0f3a")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/0f3a")
    (tmp_path / "snapshot" / "config.json").symlink_to("../blobs/0f3a")
    checkpoint = open_checkpoint(tmp_path / "snapshot")
    assert [file.name for file in checkpoint.files] == ["model.safetensors"]
    assert_same(checkpoint.state_dict(), hf_state())


# ---------------------------------------------------------------- pickles that are state dicts


def wrapped_in(name):
    return lambda state: {name: state, "epoch": 3, "optimizer": {"lr": 0.1}}


def prefixed(prefix):
    return lambda state: {prefix + key: tensor for key, tensor in state.items()}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [dict, wrapped_in("state_dict"), wrapped_in("model"), prefixed("module."), prefixed("_orig_mod."),
     prefixed("module._orig_mod."), prefixed("_orig_mod.module."), lambda s: {"state_dict": prefixed("module.")(s)}],
    ids=["bare", "state_dict", "model", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "both"],
)  # fmt: skip
def test_a_pickled_state_dict_is_found_in_its_wrapping(tmp_path, wrap, legacy):
    path = pickled(tmp_path / "x.pt", wrap(hf_state()), _use_new_zipfile_serialization=not legacy)
    checkpoint = open_checkpoint(path)
    assert checkpoint.layout.name == "hf-clip"
    assert_same(checkpoint.state_dict(), hf_state())


def test_a_prefix_that_not_all_keys_share_stays(tmp_path):
    state = prefixed("module.")(hf_state()) | {"logit_scale": torch.tensor(1.0)}
    checkpoint = open_checkpoint(pickled(tmp_path / "x.pt", state))
    assert_same(checkpoint.state_dict(), state)
    assert [tower.prefix for tower in checkpoint.layout.towers] == ["module.text_model.", "module.vision_model."]


def test_parameters_views_and_tied_tensors_are_stored_values(tmp_path):
    state, wide = hf_state(), torch.arange(48.0).reshape(6, 8)
    state["text_model.encoder.layers.0.mlp.fc1.weight"] = torch.nn.Parameter(wide[:, 2:6])
    state["text_model.encoder.layers.1.mlp.fc2.weight"] = wide[:, :4].T
    state["tied"] = state["text_projection.weight"]
    checkpoint = open_checkpoint(pickled(tmp_path / "x.pt", state))
    assert_same(checkpoint.state_dict(), {name: tensor.contiguous() for name, tensor in state.items()})
    assert checkpoint.entries["text_model.encoder.layers.0.mlp.fc1.weight"][1].nbytes == 6 * 4 * 4


def test_a_pickle_in_a_folder_becomes_a_file_that_the_folder_is_opened_by(tmp_path):
    pickled(tmp_path / "pytorch_model.bin", hf_state())
    assert [file.name for file in open_checkpoint(tmp_path).files] == ["model.safetensors"]


@pytest.mark.parametrize(
    "content", [{}, [], torch.zeros(2), {"a": 1}, {"state_dict": {}}, {"a": torch.zeros(1), "step": 3},
                {0: torch.zeros(1)}, {0: torch.zeros(1), "a": torch.zeros(1)}],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_a_pickle_without_a_state_dict_is_bad_input(tmp_path, content):
    with pytest.raises(BadInput, match="holds no state dict"):
        open_checkpoint(pickled(tmp_path / "x.pt", content))


@pytest.mark.filterwarnings("ignore")  # torch warns about sparse and quantised tensors
@pytest.mark.parametrize("kind", ["sparse", "meta", "quantised", "complex128", "complex32"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_f25_a_tensor_that_safetensors_cannot_hold_is_bad_input_by_kind(tmp_path, kind, zipped):
    if kind == "complex32" and not zipped:
        pytest.skip("torch writes these in a zip only")
    odd = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "meta": lambda: torch.empty(3, device="meta"),
        "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "complex128": lambda: torch.zeros(2, dtype=torch.complex128),
        "complex32": lambda: torch.zeros(2, dtype=torch.complex32),
    }[kind]()
    path = pickled(tmp_path / "x.pt", hf_state() | {"odd": odd}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(BadInput, match=rf"x\.pt: (torch\.)?{kind} tensors cannot be written as safetensors"):
        open_checkpoint(path)


@pytest.mark.skipif(not hasattr(torch, "uint16"), reason="newer than this torch")
def test_f11_tensors_of_types_that_are_never_edited_are_read(tmp_path):
    state = hf_state() | {"a": torch.arange(3).to(torch.uint16), "b": torch.arange(3).to(torch.float8_e5m2)}
    pickled(tmp_path / "x.pt", state)
    save_file(state, tmp_path / "x.safetensors")
    for name in ("x.pt", "x.safetensors"):
        assert_same(open_checkpoint(tmp_path / name).state_dict(), state)


@pytest.mark.parametrize("name", ["", "a\0b", "\ud800"])
def test_a_name_that_safetensors_cannot_hold_is_bad_input(tmp_path, name):
    path = pickled(tmp_path / "x.pt", hf_state() | {name: torch.ones(1)})
    with pytest.raises(BadInput, match="is empty or has characters that no name may have"):
        open_checkpoint(path)


def test_a_lazily_conjugated_tensor_is_stored_conjugated(tmp_path):
    checkpoint = open_checkpoint(pickled(tmp_path / "x.pt", hf_state() | {"odd": torch.tensor([1 + 2j]).conj()}))
    assert checkpoint.read("odd").tolist() == [1 - 2j]
