"""Pickles as data: what they ask for is named and refused, nothing is called, none makes the reader big or slow."""

from __future__ import annotations

import argparse
import io
import pathlib
import pickle
import resource
import struct
import subprocess
import sys
import time
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from tiny_files import hf_state
from torch_files import attacks, legacy, pickle_of, saved, storages_of, text, torch_zip

from uwm.checkpoint import open_checkpoint, pickles
from uwm.checkpoint.pickles import Made, Name, Persistent, read_pickle
from uwm.errors import BadInput, Refused

KINDS = list(attacks(""))
IDLE = ("dotted name", "computed name", "torch", "build")  # only names that no Python resolves any more
ALIVE = ("newobj", "newobj_ex")  # start a process of their own, which may end after the test looks


def read(data):
    return read_pickle(io.BytesIO(data), "x.pt")


# ---------------------------------------------------------------- attacks


def containers(attack):
    """Every place in a torch file where a pickle can stand."""
    good = pickle.dumps({}, 2)
    script = {"x/code/__torch__.py": b"raise SystemExit"}
    return {
        "alone": attack,
        "legacy": legacy(attack),
        "zip": torch_zip(attack),
        "script": torch_zip(attack, extra=script),
        "constants": torch_zip(good, extra=script | {"x/constants.pkl": attack}),
        "sub-folder": torch_zip(good, extra={"x/inner/data.pkl": attack}),
        "second": torch_zip(good + attack),
    }


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", KINDS)
def test_f15_f16_f18_f24_an_attack_is_refused_wherever_it_stands_and_nothing_runs(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    canary = tmp_path / "canary"
    for place, data in containers(attacks(f"touch {canary}")[kind]).items():
        for name in ("model.pt", "model.safetensors", "pytorch_model.bin"):
            (tmp_path / name).write_bytes(data)
            with pytest.raises(Refused, match="refused") as caught:
                open_checkpoint(tmp_path / name)
            assert caught.value.exit_code == 3
            assert (
                "follow the pickle's end" in str(caught.value) if place == "second" else "(byte " in str(caught.value)
            )
    assert not canary.exists()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ALIVE + IDLE])
def test_the_attacks_are_real(tmp_path, kind):
    canary = tmp_path / "canary"
    code = "import pickle, sys; u = pickle.Unpickler(sys.stdin.buffer); u.persistent_load = print; u.load()"
    attack = attacks(f"touch {canary}")[kind]
    subprocess.run([sys.executable, "-c", code], input=attack, capture_output=True, check=False)
    assert canary.exists()


def test_every_foreign_name_is_listed_with_its_place():
    names = ["os.system", "builtins.eval", "numpy.testing._private.utils.runstring", "torch.hub.load", "pip.main"]
    data, places = b"\x80\x04", []
    for name in names:
        places.append(len(data))
        data += b"c" + "\n".join(name.rsplit(".", 1)).encode() + b"\n0"
    with pytest.raises(Refused) as caught:
        read(data + b"N.")
    listed = ", ".join(f"{name} (byte {place})" for name, place in zip(names, places, strict=True))
    assert str(caught.value) == (
        f"x.pt: refused, this pickle asks for {listed}; re-save only its state_dict with torch.save"
    )


def test_many_foreign_names_are_counted_and_a_name_cannot_steer_the_terminal():
    many = b"".join(b"cos\nf%d\n0" % n for n in range(14))
    with pytest.raises(Refused, match=r"os\.f9 \(byte \d+\) and 4 more; re-save"):
        read(b"\x80\x02" + many + b"N.")
    with pytest.raises(Refused) as caught:
        read(b"\x80\x04" + text("\x1b[2J\nos" + "x" * 5000) + text("\ud800") + b"\x93.")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "name", ["torch.load", "torch.storage._load_from_bytes", "torch.hub.load", "torch.jit._pickle.os", "torch.classes",
             "torch._utils._rebuild_tensor_v2x", "torch.FloatStorage.from_file", "torch.serialization._get_layoutx",
             "collections.OrderedDict.__class__", "argparse.open", "pathlib.os", "builtins.getattr", "builtins.type",
             "builtins.__import__", "numpy.load", "numpy.core.multiarray.fromfile",
             "numpy.f2py.crackfortran.getlincoef",
             "torch.nn.modules.linear.Linear", "copyreg._reconstructor", "os.path.join", "torchvision.os"],
)  # fmt: skip
def test_the_allow_list_ends_where_it_should(name):
    module, _, attribute = name.rpartition(".")
    with pytest.raises(Refused, match="refused"):
        read(b"\x80\x04" + text(module) + text(attribute) + b"\x93.")


@pytest.mark.parametrize("code", [b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00"], ids=["EXT1", "EXT2", "EXT4"])
def test_the_extension_registry_is_refused(code):
    with pytest.raises(Refused, match=r"copyreg\.extension_1 \(byte 2\)"):
        read(b"\x80\x02" + code + b".")


def test_what_an_allowed_name_would_make_is_only_noted():
    found = read(b"\x80\x02ccollections\nOrderedDict\n)R}X\x01\x00\x00\x00aK\x01sb.")
    assert isinstance(found, Made)
    assert (found.name, found.arguments, found.state) == ("collections OrderedDict", (), {"a": 1})
    assert isinstance(read(b"\x80\x02ctorch\nFloatStorage\n."), Name)
    assert isinstance(read(b"\x80\x02K\x01Q."), Persistent)


@pytest.mark.parametrize("protocol", range(5))
def test_plain_values_are_read_as_python_reads_them(protocol):
    value = {"a": [1, 2.5, None, True, -(2**70)], "b": (1, (2, 3), (4, 5, 6), (1, 2, 3, 4)), 7: "é\n", "c": {}, "d": ()}
    assert read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize(
    "module", [torch.nn.Linear(2, 2), {"model": torch.nn.Sequential(torch.nn.Linear(2, 2))}], ids=["module", "wrapped"]
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_whole_module_is_refused_by_name(tmp_path, module, zipped):
    (tmp_path / "x.pt").write_bytes(saved(module, _use_new_zipfile_serialization=zipped))
    with pytest.raises(Refused, match=r"asks for torch\.nn\.modules\..*re-save only its state_dict with torch\.save"):
        open_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("numpy_1", [False, True], ids=["numpy 2", "numpy 1"])
def test_a_training_checkpoint_is_read(tmp_path, zipped, numpy_1):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = OrderedDict(hf_state())
    state._metadata = OrderedDict({"": {"version": 1}})
    counts = defaultdict(list, {"a": [1]})
    content = {
        "epoch": 3, "state_dict": state, "optimizer": optimizer.state_dict(), "args": argparse.Namespace(lr=0.1),
        "best": np.float64(0.5), "losses": np.arange(3.0), "out": pathlib.PurePosixPath("/tmp/x"), "counts": counts,
        "rng": torch.get_rng_state(), "python": (3, (1, 2, 3), None), "set": {1, 2}, "dtype": torch.float16,
        "size": torch.Size([1, 2]), "device": torch.device("cpu"), "numpy": np.random.RandomState(0).get_state(),
        ("a", "tuple"): 1, "random": {"cpu": torch.get_rng_state()},
    }  # fmt: skip
    data = saved(content, _use_new_zipfile_serialization=zipped)
    if numpy_1:
        pickled = (pickle_of(data) if zipped else data).replace(
            b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
        )
        data = torch_zip(pickled, storages_of(data)) if zipped else pickled
    assert (b"numpy._core" in data) != numpy_1
    (tmp_path / "x.pt").write_bytes(data)
    found = open_checkpoint(tmp_path / "x.pt").state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


# ---------------------------------------------------------------- limits


def nested(begin, end, depth):
    return b"\x80\x02" + begin * depth + b"N" + end * depth + b"."


DEEP = 100_000


def dict_bomb(levels=60):
    """{"a": d, "b": d} of {"a": e, "b": e} of …"""
    rows = b"".join(
        b"q" + bytes([n]) + b"0}" + b"".join(text(name) + b"h" + bytes([n]) + b"s" for name in "ab")
        for n in range(levels)
    )
    return b"\x80\x02}" + rows + b"."


def tuple_bomb(levels=60):
    rows = b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(levels))
    return b"\x80\x02K\x01" + rows


def script_bomb(levels=60):
    """A module of two modules of two modules of …, the same ones."""
    rows = b"".join(
        b"q" + bytes([n]) + b"0c__torch__\nM\n)\x81}"
        + b"".join(text(name) + b"h" + bytes([n]) + b"s" for name in "ab") + b"b"
        for n in range(levels)
    )  # fmt: skip
    return b"\x80\x02c__torch__\nM\n)\x81}b" + rows + b"."


def rebuild(arguments):
    return b"\x80\x02}" + text("a") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tRs."


FLOATS = b"(" + text("storage") + b"ctorch\nFloatStorage\n"
BOMBS = {
    "tuples": nested(b"", b"\x85", DEEP), "lists": nested(b"]", b"a", DEEP), "dicts": nested(b"}K\x01", b"s", DEEP),
    "marks": b"\x80\x02" + b"(" * DEEP + b"t" * DEEP + b".", "made": nested(b"", b"Q", DEEP),
    "open marks": b"\x80\x02" + b"(" * DEEP + b".",
    "calls": b"\x80\x02" + b"ctorch\nSize\n" * 20_000 + b"N" + b"\x85R" * 20_000 + b".",
    "parameters": b"\x80\x02}" + text("a") + b"ctorch._utils\n_rebuild_parameter\n" * 20_000 + b"N"
                  + b"\x85R" * 20_000 + b"s.",
    "itself": b"\x80\x02]q\x00h\x00a.", "itself by key": b"\x80\x02}q\x00K\x01h\x00s" + text("a") + b"h\x00s.",
    "dict of itself twice": b"\x80\x02}q\x00" + text("a") + b"h\x00s" + text("b") + b"h\x00s.",
    "doubled dicts": dict_bomb(), "doubled tuples": tuple_bomb() + b".",
    "doubled name": b"\x80\x04" + tuple_bomb()[2:] + text("x") + b"\x93.",
    "doubled key": b"\x80\x02}" + tuple_bomb()[2:] + b"K\x01s.",
    "doubled shape": rebuild(FLOATS + text("0") + text("cpu") + b"K\x04tQK\x00" + tuple_bomb()[2:] + b"K\x01\x85\x89}"),
    "doubled key of a storage": rebuild(FLOATS + tuple_bomb()[2:] + text("cpu") + b"K\x04tQK\x00"
                                        + b"K\x01\x85" * 2 + b"\x89}"),
    "pops of groups": b"\x80\x02" + b"N" * 200_000 + b"(1" * 200_000 + b".",
    "huge LONG4": b"\x80\x02\x8b\xff\xff\xff\x7f1.", "negative LONG4": b"\x80\x02\x8b\xff\xff\xff\xff.",
    "long digits": b"\x80\x02L" + b"9" * 100_000 + b"L\n.", "2^31 tuple": b"\x80\x02B\x00\x00\x00\x80.",
    "2^62 text": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"a.", "2^63 bytes": b"\x80\x04\x8e" + b"\xff" * 8 + b".",
    "long frame": b"\x80\x04\x95" + b"\xff" * 8 + b"N.",
}  # fmt: skip


@pytest.mark.parametrize("place", ["alone", "zip", "legacy", "script"])
@pytest.mark.parametrize("kind", BOMBS)
def test_f19_no_pickle_makes_the_reader_big_slow_or_crash(tmp_path, kind, place):
    (tmp_path / "x.pt").write_bytes(containers(BOMBS[kind])[place])
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(BadInput, match=r"x\.pt: ") as caught:
        open_checkpoint(tmp_path / "x.pt")
    assert caught.value.exit_code == 2
    assert len(str(caught.value)) < 600
    assert time.process_time() - began < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


@pytest.mark.parametrize(("limit", "size"), [("MAX_OPCODES", 1000), ("MAX_PICKLE", 1000), ("MAX_LINE", 1000)], ids=str)
def test_a_pickle_within_the_limits_is_read_and_one_beyond_is_not(monkeypatch, limit, size):
    make = {
        "MAX_OPCODES": lambda n: b"\x80\x02" + b"N0" * ((n - 4) // 2) + b"N.",
        "MAX_PICKLE": lambda n: b"\x80\x02" + b"B" + struct.pack("<I", n - 8) + b"x" * (n - 8) + b".",
        "MAX_LINE": lambda n: b"\x80\x02S'" + b"x" * (n - 3) + b"'\n.",
    }[limit]
    monkeypatch.setattr(pickles, limit, size)
    read(make(size))
    with pytest.raises(BadInput, match="damaged pickle"):
        read(make(size + 4))


def test_a_module_of_the_same_modules_is_looked_at_once(tmp_path):
    (tmp_path / "x.pt").write_bytes(containers(script_bomb())["script"])
    with pytest.raises(BadInput, match="holds no state dict"):
        open_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "data",
    [b"\x80\x02N\x86.", b"\x80\x02\x85.", b"\x80\x020.", b"\x80\x02N", b"\x80\x02NN.", b"\x80\x02(N.",
     b"\x80\x02h\x05.",
     b"\x80\x02NNb.", b"\x80\x02]N}b.", b"\x80\x02NNs.", b"\x80\x02}(Nu.", b"\x80\x02NNa.", b"\x80\x02NN\x85R.",
     b"\x80\x02ctorch\nSize\n]R.", b"\x80\x04NN\x93.", b"\x80\x02\xff.", b"\x80\x05\x97.", b"\x80\x02q\x00.", b"",
     b"\x80\x02ccollections\nOrderedDict\n)R}b}b."],
    ids=repr,
)  # fmt: skip
def test_f17_a_pickle_that_python_could_not_read_is_damaged(data):
    with pytest.raises(BadInput, match=r"^x\.pt: damaged pickle \(.+\); download it again$"):
        read(data)


def test_numbers_whose_hashes_would_collide_are_kept_as_they_come():
    modulus = 2**61 - 1
    found = read_pickle(io.BytesIO(pickle.dumps({modulus * n: n for n in range(1, 4)})), "x.pt")
    assert [(key.arguments, value) for key, value in found.items()] == [((modulus * n,), n) for n in range(1, 4)]
