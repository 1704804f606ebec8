"""Opening checkpoints: what is read is what is stored, and hostile files are refused without running or crashing."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct

import pytest
import torch
from layouts_by_hand import to_open_clip
from safetensors.torch import load_file, save_file
from tiny_files import bits, hf_folder, hf_state, safetensors_bytes

from uwm.checkpoint import open_checkpoint
from uwm.errors import BadInput, Refused
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


ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def sharded(folder, state):
    """Two shards and their index, as a mapping to be spoilt."""
    folder.mkdir()
    names = sorted(state)
    weight_map = {name: (ONE, TWO)[i % 2] for i, name in enumerate(names)}
    for shard in (ONE, TWO):
        save_file({name: state[name] for name in names if weight_map[name] == shard}, folder / shard)
    write_index(folder, {"weight_map": weight_map})
    return weight_map


def write_index(folder, content, encoding="utf-8"):
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "model.safetensors.index.json").write_text(text, encoding=encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_shards_are_one_checkpoint(tmp_path, encoding):
    weight_map = sharded(tmp_path / "in", hf_state())
    write_index(tmp_path / "in", {"metadata": {"total_size": 1}, "weight_map": weight_map}, encoding)
    checkpoint = open_checkpoint(tmp_path / "in")
    assert_same(checkpoint.state_dict(), hf_state())
    assert list(map(str, checkpoint.side_files)) == ["model.safetensors.index.json"]


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "C:\\x.safetensors",
             "\\\\host\\x.safetensors", "a\0.safetensors", "model.bin", "", ".safetensors\n", "model.safetensors\n"],
)  # fmt: skip
def test_a_shard_outside_of_its_folder_is_refused(tmp_path, name):
    weight_map = sharded(tmp_path / "in", hf_state())
    save_file(hf_state(), tmp_path / "model.safetensors")
    weight_map["logit_scale"] = name
    write_index(tmp_path / "in", {"weight_map": weight_map})
    with pytest.raises(Refused, match="not a plain .safetensors file name"):
        open_checkpoint(tmp_path / "in")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}',
     '{"weight_map": {"a": 1, "b": "c"}}',
     '{"weight_map": {"a": null}}', '{"weight_map": {"a": ["b"]}}', '{"weight_map": {}}', "[" * 100_000,
     '{"weight_map": {"a": "b", "a": "c"}}'],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_a_broken_index_is_bad_input(tmp_path, content):
    sharded(tmp_path / "in", hf_state())
    write_index(tmp_path / "in", content)
    with pytest.raises((BadInput, Refused)):
        open_checkpoint(tmp_path / "in")


def test_a_missing_shard_is_bad_input(tmp_path):
    sharded(tmp_path / "in", hf_state())
    (tmp_path / "in" / TWO).unlink()
    with pytest.raises(BadInput, match=f"shard '{TWO}' is missing"):
        open_checkpoint(tmp_path / "in")


def test_a_shard_without_a_promised_tensor_is_bad_input(tmp_path):
    weight_map = sharded(tmp_path / "in", hf_state())
    write_index(tmp_path / "in", {"weight_map": weight_map | {"promised": ONE}})
    with pytest.raises(BadInput, match="promised"):
        open_checkpoint(tmp_path / "in")


def test_a_tensor_in_two_shards_is_bad_input(tmp_path):
    sharded(tmp_path / "in", hf_state())
    twice = load_file(tmp_path / "in" / ONE) | {"logit_scale": torch.tensor(1.0)}
    save_file(twice | load_file(tmp_path / "in" / TWO), tmp_path / "in" / ONE)
    with pytest.raises(BadInput, match="two shards|twice"):
        open_checkpoint(tmp_path / "in")


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
@pytest.mark.parametrize("kind", ["sparse", "meta", "quantised", "uint16"])
def test_a_tensor_that_safetensors_cannot_hold_is_bad_input_by_kind(tmp_path, kind):
    odd = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "meta": lambda: torch.empty(3, device="meta"),
        "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "uint16": lambda: torch.zeros(2, dtype=torch.uint16),
    }[kind]()
    path = pickled(tmp_path / "x.pt", hf_state() | {"odd": odd})
    with pytest.raises((BadInput, Refused), match=r"x\.pt"):
        open_checkpoint(path)


def test_a_lazily_conjugated_tensor_is_stored_conjugated(tmp_path):
    checkpoint = open_checkpoint(pickled(tmp_path / "x.pt", hf_state() | {"odd": torch.tensor([1 + 2j]).conj()}))
    assert checkpoint.read("odd").tolist() == [1 - 2j]


# ---------------------------------------------------------------- pickles that are attacks


class Attack:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def attacks(command):
    """One pickle for each way to call a function (fickling's and picklescan's lists of bypasses)."""
    system, run = b"cos\nsystem\n", text(command)
    code = text(f"__import__('os').system({command!r})")
    return {
        "reduce": b"\x80\x02" + system + run + b"\x85R.",
        "posix": b"\x80\x02cposix\nsystem\n" + run + b"\x85R.",
        "inst": b"\x80\x02(" + run + b"ios\nsystem\n.",
        "obj": b"\x80\x02(" + system + run + b"o.",
        "eval": b"\x80\x02cbuiltins\neval\n" + code + b"\x85R.",
        "exec": b"\x80\x02cbuiltins\nexec\n" + code + b"\x85R.",
        "stack global": b"\x80\x04" + text("os") + text("system") + b"\x93" + run + b"\x85R.",
        "getattr": b"\x80\x04cbuiltins\ngetattr\ncbuiltins\n__import__\n" + text("os") + b"\x85R" + text("system")
        + b"\x86R" + run + b"\x85R.",
        "runpy": b"\x80\x02crunpy\n_run_code\n" + code + b"}\x86R.",
        "popen": b"\x80\x02csubprocess\ngetoutput\n" + run + b"\x85R.",
        "then broken": b"\x80\x02" + system + run + b"\x85R0\xff",
        "in a list": b"\x80\x02]" + system + run + b"\x85Ra.",
    }  # fmt: skip


KINDS = list(attacks(""))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("insist", [False, True], ids=["", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_attack_is_refused_and_nothing_runs(tmp_path, monkeypatch, kind, insist):
    if insist:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    canary = tmp_path / "canary"
    for name in ("model.pt", "model.safetensors", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(attacks(f"touch {canary}")[kind])
        with pytest.raises(Refused, match="refused"):
            open_checkpoint(tmp_path / name)
    assert not canary.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_the_attacks_are_real(tmp_path, kind):
    canary = tmp_path / "canary"
    try:
        pickle.loads(attacks(f"touch {canary}")[kind])
    except (pickle.UnpicklingError, TypeError, KeyError, AttributeError):
        assert kind in ("then broken", "runpy")
    assert canary.exists()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrap", [dict, wrapped_in("state_dict")])
def test_an_attack_beside_good_tensors_is_refused_by_name(tmp_path, wrap, legacy):
    content = wrap(hf_state()) | {"extra": Attack(os.system, f"touch {tmp_path / 'canary'}")}
    path = pickled(tmp_path / "x.pt", content, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(Refused, match=rf"x\.pt: refused, this pickle asks for {os.name}\.system"):
        open_checkpoint(path)
    assert not (tmp_path / "canary").exists()


def test_a_whole_module_is_refused(tmp_path):
    with pytest.raises(
        Refused, match=r"asks for torch\.nn\.modules\.linear\.Linear \(byte 2\); re-save only its state_dict"
    ):
        open_checkpoint(pickled(tmp_path / "x.pt", torch.nn.Linear(2, 2)))


def test_torchscript_code_is_not_run(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("archive/data.pkl", attacks(f"touch {tmp_path / 'canary'}")["reduce"])
        archive.writestr("archive/code/__torch__.py", "import os")
    with pytest.raises(Refused, match=r"x\.pt: refused, this pickle asks for os\.system"):
        open_checkpoint(tmp_path / "x.pt")
    assert not (tmp_path / "canary").exists()


@pytest.mark.filterwarnings("ignore")  # torch warns about odd protocols
@pytest.mark.parametrize("legacy", [False, True])
def test_a_damaged_pickle_is_refused_and_never_crashes(tmp_path, legacy):
    path = pickled(
        tmp_path / "x.pt", {"a": torch.arange(4.0), "b": torch.ones(2)}, _use_new_zipfile_serialization=not legacy
    )
    data, generator = path.read_bytes(), random.Random(5)
    cuts = [data[:length] for length in range(0, len(data), 3 if legacy else 13)]
    flips = []
    for _ in range(250):
        flip = bytearray(data)
        for _ in range(generator.choice((1, 2, 4))):
            flip[generator.randrange(len(flip))] = generator.randrange(256)
        flips.append(bytes(flip))
    for damaged in cuts + flips:
        path.write_bytes(damaged)
        with pytest.raises((BadInput, Refused), match=r"x\.pt"):  # undamaged, it would be no CLIP
            open_checkpoint(path)
