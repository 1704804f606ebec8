"""What is read is what torch reads, and damaged files only ever give BadInput or Refused."""

from __future__ import annotations

import itertools
import pickletools
import random
import time
import warnings
from collections import OrderedDict

import pytest
import torch
from tiny_files import bits
from torch_files import legacy, pickle_of, saved, storages_of, torch_zip

from uwm.checkpoint.archive import open_archive
from uwm.checkpoint.tensors import StoredTensor
from uwm.errors import BadInput, Refused

DTYPES = [
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64",
    "complex128", "float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64",
]  # fmt: skip
CONTAINERS = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}


def same(ours, theirs):
    """Whether a tensor that we read is the one that torch reads, to the bit."""
    theirs = theirs.detach().resolve_conj().resolve_neg().contiguous()
    if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
        return False
    raw = [t.reshape(-1).view(torch.uint8) if t.dtype.itemsize > 8 else bits(t) for t in (ours, theirs)]
    return torch.equal(*raw)


def assert_read_as_torch_reads(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torch.load(path, weights_only=True)
    found = open_archive(path).state_dicts[""]
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert same(found[name].read(), tensor), name
        assert found[name].read().is_contiguous()


def views():
    wide = torch.arange(48.0).reshape(6, 8)
    marked = torch.ones(2)
    marked.note = 1
    return {
        "whole": wide, "columns": wide[:, 2:5], "turned": wide.T, "every other": wide[::2, 1::3], "row": wide[3],
        "expanded": wide[:1].expand(5, 8), "all one": torch.ones(()).expand(3, 4),
        "overlapping": wide.flatten().unfold(0, 4, 1),
        "scalar": torch.tensor(3.5), "one of": wide[2, 3], "empty": torch.zeros(0, 3), "empty part": wide[3:3],
        "parameter": torch.nn.Parameter(wide[1:3]), "buffer": torch.nn.Buffer(torch.ones(3)), "marked": marked,
        "tied": wide, "conjugated": torch.tensor([1 + 2j, 3 - 1j]).conj(),
        "imaginary": torch.tensor([1 + 2j]).conj().imag,
        "many": torch.zeros((1,) * 20), "nan": torch.tensor([float("nan"), -0.0, float("-inf")]),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), "é\n": torch.ones(1),
    }  # fmt: skip


@pytest.mark.parametrize("options", CONTAINERS.values(), ids=CONTAINERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_read_as_torch_reads_it(tmp_path, dtype, options):
    if options and dtype.startswith(("float8", "uint16", "uint32", "uint64")):
        pytest.skip("torch writes these in a zip only")
    values = torch.arange(-6, 18).reshape(4, 6)
    wide = values.to(getattr(torch, dtype)) if dtype[:4] != "uint" else values.abs().to(getattr(torch, dtype))
    state = {"whole": wide, "turned": wide.T, "part": wide[1:, 2:4], "scalar": wide[2, 2], "empty": wide[:0]}
    torch.save(state, tmp_path / "x.pt", **options)
    assert_read_as_torch_reads(tmp_path / "x.pt")


@pytest.mark.parametrize("options", CONTAINERS.values(), ids=CONTAINERS)
@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_every_view_is_read_as_torch_reads_it(tmp_path, options, kind):
    torch.save(kind(views()), tmp_path / "x.pt", **options)
    assert_read_as_torch_reads(tmp_path / "x.pt")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_is_read(tmp_path, protocol):
    """Torch itself reads the later ones only where it may run what they say."""
    state = views()
    torch.save(state, tmp_path / "x.pt", pickle_protocol=protocol)
    found = open_archive(tmp_path / "x.pt").state_dicts[""]
    assert list(found) == list(state)
    assert all(same(found[name].read(), state[name]) for name in state)


def test_a_view_costs_no_more_than_its_own_span(tmp_path):
    torch.save({"a": torch.zeros(1_000_000)[10:20]}, tmp_path / "x.pt")
    tensor = open_archive(tmp_path / "x.pt").state_dicts[""]["a"].read()
    assert tensor.untyped_storage().nbytes() == 40


# ---------------------------------------------------------------- damage


def flipped(data, generator):
    """Some bytes changed, in the front half of the time: there lie the pickle and the headers."""
    data = bytearray(data)
    end = len(data) if generator.random() < 0.5 else min(600, len(data))
    for _ in range(generator.choice((1, 1, 2, 4, 8))):
        place = generator.randrange(end)
        data[place] = generator.choice((generator.randrange(256), data[place] ^ 1 << generator.randrange(8)))
    return bytes(data)


def opcodes(pickled):
    places = [position for _, _, position in pickletools.genops(pickled)] + [len(pickled)]
    return [pickled[a:b] for a, b in itertools.pairwise(places)]


STEPS = [b"J\xff\xff\xff\x7f", b"\x8a\x08" + b"\xff" * 7 + b"\x3f", b"K\x00", b"h\x00", b"h\x03"]
STEPS += [bytes([code]) for code in b"N\x88)}](02\x86RQb\x81\x92"]


def reordered(pickled, generator):
    """A pickle whose steps are dropped, doubled, swapped, replaced or given other arguments."""
    steps = opcodes(pickled)
    for _ in range(generator.choice((1, 1, 2, 3))):
        place, other = generator.randrange(1, len(steps) - 1), generator.randrange(1, len(steps) - 1)
        kind = generator.randrange(5)
        if kind == 0:
            del steps[place]
        elif kind == 1:
            steps.insert(place, steps[other])
        elif kind == 2:
            steps[place], steps[other] = steps[other], steps[place]
        elif kind == 3:
            steps[place] = generator.choice(STEPS)
        elif len(steps[place]) > 1:
            changed = bytearray(steps[place])
            changed[generator.randrange(1, len(changed))] = generator.randrange(256)
            steps[place] = bytes(changed)
    return b"".join(steps)


def legacy_of(data, content):
    """A legacy file with another pickle of its content."""
    found = [len(row) for row in rows_of(data)]
    begin = sum(found[:3])
    return data[:begin] + content + data[begin + found[3] :]


def rows_of(data):
    """The five pickles of a legacy file."""
    for _ in range(5):
        end = 1 + next(position for code, _, position in pickletools.genops(data) if code.name == "STOP")
        yield data[:end]
        data = data[end:]


def torch_reads(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.load(path, weights_only=True)
        except Exception:
            return None


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("way", ["bytes", "steps"])
def test_a_damaged_file_is_bad_input_or_read_as_torch_reads_it(tmp_path, container, way):
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)[1:], "c": torch.nn.Parameter(torch.ones(2))}  # noqa: E501  # fmt: skip
    good, generator = saved(state | {"d": state["a"].T}, **CONTAINERS[container]), random.Random(5)
    path, seen, began = tmp_path / "x.pt", {"refused": 0, "read": 0, "ours alone": 0}, time.process_time()
    for _ in range(900):
        if way == "bytes":
            data = flipped(good, generator)
        elif container == "zip":
            data = torch_zip(reordered(pickle_of(good), generator), storages_of(good))
        else:
            data = legacy_of(good, reordered(list(rows_of(good))[3], generator))
        path.write_bytes(data)
        try:
            found = open_archive(path).state_dicts
            ours = {n: t.read() for n, t in found.get("", {}).items() if isinstance(t, StoredTensor)}
        except (BadInput, Refused) as error:
            assert "x.pt" in str(error)
            seen["refused"] += 1
            continue
        theirs = torch_reads(path)
        seen["read"] += 1
        seen["ours alone"] += theirs is None
        if theirs is not None and ours:
            assert {n: t for n, t in theirs.items() if isinstance(n, str)}.keys() == ours.keys()
            assert all(same(ours[name], theirs[name]) for name in ours)
    assert seen["refused"] > 300
    assert seen["read"] > 40
    assert seen["ours alone"] < seen["read"] / 3, seen
    assert time.process_time() - began < 60


def test_the_mutations_can_take_a_legacy_file_apart():
    data = legacy({"a": 1}, {})
    assert legacy_of(data, list(rows_of(data))[3]) == data
