"""The header check: every cut, every lie, and never laxer than safetensors itself."""

from __future__ import annotations

import io
import json
import random
import struct
import time

import pytest
import safetensors
import torch
from safetensors.torch import save
from tiny_files import safetensors_bytes

from uwm.checkpoint.header import DTYPES, make_header, read_header
from uwm.errors import BadInput

DATA = b"abcdefgh"
ENTRY = {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}
HALF = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
SMALL = save(
    {
        "b.weight": torch.ones(2, 3),
        "a": torch.tensor([1, -2], dtype=torch.int16),
        "é": torch.tensor(2.5),
    },
    metadata={"format": "pt"},
)


def read(data):
    return read_header(io.BytesIO(data), len(data), "x.safetensors")[1]


def refused(data, says="x.safetensors"):
    with pytest.raises(BadInput, match=says) as caught:
        read(data)
    return str(caught.value)


def test_a_file_of_safetensors_is_read():
    stream = io.BytesIO(SMALL)
    raw, entries = read_header(stream, len(SMALL), "x")
    assert SMALL.startswith(raw)
    assert stream.tell() == len(raw)
    begins = [entry["data_offsets"][0] for entry in entries.values()]
    assert begins == sorted(begins)
    assert {name: (entry["dtype"], entry["shape"]) for name, entry in entries.items()} == {
        "b.weight": ("F32", [2, 3]), "a": ("I16", [2]), "é": ("F32", []),
    }  # fmt: skip


def test_f01_f02_every_cut_is_refused():
    for length in range(len(SMALL)):
        message = refused(SMALL[:length])
        assert str(length) in message or "found" in message


def test_one_byte_too_many_is_refused():
    refused(SMALL + b"\0", f"expected {24 + 4 + 4} bytes of tensors, found {24 + 4 + 5}")


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100_000_001, 10_000, len(DATA) + 200, 2**56])
def test_f04_a_header_longer_than_the_file_is_refused_before_it_is_read(length):
    refused(safetensors_bytes({"a": ENTRY}, DATA, length=length), f"header of {length} bytes")


@pytest.mark.parametrize("length", [60, 123, 128, 384, 640, 0x3C20, 0x4B50, 0x7B20])
def test_header_lengths_whose_bytes_look_like_another_format_are_read(length):
    header = json.dumps({"a": ENTRY}, separators=(",", ":")).ljust(length)
    assert read(safetensors_bytes(header, DATA)) == {"a": ENTRY}


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a Git-LFS pointer"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML or XML page"),
        (b"\n\n  <html><body>404</body></html>", "an HTML or XML page"),
        (b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}', "a JSON file"),
    ],
)
def test_f13_other_files_are_called_by_their_name(data, kind):
    refused(data, kind)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (f'{{"a": {json.dumps(ENTRY)}, "a": {json.dumps(HALF)}}}', "duplicate key 'a'"),
        (f'{{"__metadata__": {{"k": "1", "k": "2"}}, "a": {json.dumps(ENTRY)}}}', "duplicate key 'k'"),
        ('{"a": {"dtype": "U8", "shape": [8], "shape": [8], "data_offsets": [0, 8]}}', "duplicate key 'shape'"),
        ("[]", "no JSON object"),
        ("7", "no JSON object"),
        ("{}", "no tensors"),
        ({"__metadata__": {"format": "pt"}}, "no tensors"),
        ("", "not valid JSON"),
        ("[" * 200_000, "not valid JSON"),
        ('{"a":' * 200_000, "not valid JSON"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
        (json.dumps({"a": ENTRY}) + "\0", "not valid JSON"),
        (json.dumps({"a": ENTRY}) + "{}", "not valid JSON"),
        (json.dumps({"a": ENTRY}).encode("utf-16-le"), "not valid JSON"),
        (b"\xef\xbb\xbf" + json.dumps({"a": ENTRY}).encode(), "not valid JSON"),
        (json.dumps({"Z": ENTRY}).encode().replace(b"Z", b"\xff"), "not valid JSON"),
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
def test_f06_f07_f12_what_is_no_object_of_entries_is_refused(header, says):
    refused(safetensors_bytes(header, DATA), says)


@pytest.mark.parametrize("entry", [None, 3, "U8", [], {}, ["U8", [8], [0, 8]], {"dtype": "U8", "shape": [8]}])
def test_an_entry_that_is_no_description_is_refused_by_name(entry):
    refused(safetensors_bytes({"some.weight": entry}, DATA), "tensor 'some.weight'")


@pytest.mark.parametrize(
    "shape",
    [None, 8, "", "8", {}, [8.0], [True, 8], ["8"], [[8]], [-8], [-2, -4], [2**63], [7], [2**40, 2**40]],
)  # fmt: skip
def test_a_shape_that_is_wrong_is_refused_by_name(shape):
    refused(safetensors_bytes({"some.weight": ENTRY | {"shape": shape}}, DATA), "tensor 'some.weight'")


@pytest.mark.parametrize("shape", ["", {}])
def test_a_shape_that_is_no_list_is_no_scalar(shape):
    entry = {"dtype": "U8", "shape": shape, "data_offsets": [0, 1]}
    refused(safetensors_bytes({"some.weight": entry}, b"a"), "tensor 'some.weight'")


def test_a_shape_whose_product_overflows_is_refused_though_a_zero_follows():
    empty = {"dtype": "U8", "shape": [2**61, 2**61, 0], "data_offsets": [0, 0]}
    refused(safetensors_bytes({"some.weight": empty, "a": ENTRY}, DATA), "tensor 'some.weight'")


@pytest.mark.parametrize("dtype", [None, 3, [], {}, ["U8"], "u8", "F32", "F7", "", "U8 "])
def test_a_dtype_that_is_wrong_is_refused_by_name(dtype):
    refused(safetensors_bytes({"some.weight": ENTRY | {"dtype": dtype}}, DATA), "tensor 'some.weight'")


@pytest.mark.parametrize(
    "offsets",
    [None, 8, [], [8], [0, 8, 8], "08", {"0": 0, "8": 8}, [0, "8"], [0.0, 8.0], [False, 8], [8, 0], [-8, 0], [-0.0, 8],
     [0, 2**63]],
)  # fmt: skip
def test_offsets_that_are_wrong_are_refused_by_name(offsets):
    refused(safetensors_bytes({"some.weight": ENTRY | {"data_offsets": offsets}}, DATA), "tensor 'some.weight'")


@pytest.mark.parametrize("second", [[5, 9], [3, 7], [0, 4], [2, 6]])
def test_f08_holes_and_overlaps_are_refused(second):
    header = {"a": HALF, "b": HALF | {"data_offsets": second}}
    refused(safetensors_bytes(header, bytes(max(second))), "hole or overlap")


def test_a_hole_at_the_start_is_refused():
    refused(safetensors_bytes({"a": HALF | {"data_offsets": [4, 8]}}, DATA), "tensor 'a' starts at byte 4, expected 0")


def test_data_that_ends_early_is_refused_with_both_counts():
    refused(safetensors_bytes({"a": ENTRY}, DATA[:5]), "expected 8 bytes of tensors, found 5")


@pytest.mark.parametrize("name", ["", "a\0b", "\ud800", "x\udfff"])
def test_names_that_no_name_may_be_are_refused(name):
    refused(safetensors_bytes({name: ENTRY}, DATA), "tensor name")


@pytest.mark.parametrize("name", ["../x", "\x1b[31mred", "é", "a" * 100_000, "日本\u202e"])
def test_odd_names_are_read_and_escaped_in_messages(name):
    assert list(read(safetensors_bytes({name: ENTRY}, DATA))) == [name]
    assert "\x1b" not in refused(safetensors_bytes({name: ENTRY}, DATA[:3]))
    assert "\x1b" not in refused(safetensors_bytes({name: ENTRY | {"dtype": "F7"}}, DATA))


@pytest.mark.parametrize(
    "metadata", [3, "x", [], {"a": 1}, {"a": None}, {"a": {}}, {"a": ["b"]}, ENTRY, float("nan"), True, {"a": "\ud800"}]
)
def test_f10_metadata_that_is_not_text_by_text_is_refused(metadata):
    refused(safetensors_bytes({"__metadata__": metadata, "a": ENTRY}, DATA))


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}, {"a": "", "": "b"}])
def test_metadata_of_text_is_read(metadata):
    assert read(safetensors_bytes({"__metadata__": metadata, "a": ENTRY}, DATA)) == {"a": ENTRY}


def test_empty_tensors_share_a_place():
    empty = {"dtype": "F32", "shape": [0, 3]}
    header = {"a": HALF, "b": HALF | {"data_offsets": [4, 8]}}
    header |= {f"empty{n}": empty | {"data_offsets": [n, n]} for n in (0, 4, 8)}
    assert len(read(safetensors_bytes(header, DATA))) == 5


def test_f05_a_bomb_of_entries_is_refused_in_time():
    many = ",".join(f'"{n}":0' for n in range(20_000))
    overlapping = ",".join(f'"{n}":{{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}' for n in range(5_000))
    start = time.process_time()
    refused(safetensors_bytes("{" + many + "}"))
    refused(safetensors_bytes("{" + many + ',"19999":0}'), "duplicate key '19999'")
    refused(safetensors_bytes("{" + overlapping + "}", DATA), "hole or overlap")
    assert time.process_time() - start < 2


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_header_made_here_reads_back_here_and_in_safetensors(dtype):
    lone = (4,) if dtype.values > 1 else ()
    header = make_header([("z", dtype, (4, 3)), ("a", dtype, lone), ("none", dtype, (0,))])
    data = header + bytes(dtype.nbytes((4, 3)) + dtype.nbytes(lone))
    assert len(header) % 8 == 0
    assert list(read(data)) in (["z", "a", "none"], ["none", "z", "a"])
    assert {name: tuple(entry["shape"]) for name, entry in safetensors.deserialize(data)} == {
        "z": (4, 3), "a": lone, "none": (0,),
    }  # fmt: skip


# ---------------------------------------------------------------- against safetensors


def assert_not_laxer(data):
    """Whatever is accepted here, safetensors accepts with the same names, types, shapes and bytes."""
    try:
        raw, entries = read_header(io.BytesIO(data), len(data), "x")
    except BadInput:
        return False
    theirs = {name: (e["dtype"], e["shape"], bytes(e["data"])) for name, e in safetensors.deserialize(data)}
    body = data[len(raw) :]
    assert theirs == {n: (e["dtype"], e["shape"], body[slice(*e["data_offsets"])]) for n, e in entries.items()}
    return True


def test_flipped_bytes_are_never_read_otherwise_than_by_safetensors():
    generator = random.Random(20)
    header = 8 + struct.unpack("<Q", SMALL[:8])[0]
    accepted = 0
    for _ in range(4000):
        data = bytearray(SMALL)
        for _ in range(generator.choice((1, 1, 2, 5))):
            place = generator.randrange(header)
            data[place] = generator.choice((data[place] ^ (1 << generator.randrange(8)), generator.randrange(256)))
        accepted += assert_not_laxer(bytes(data))
    assert accepted > 20  # a changed letter of a name is a good file


ODD = [
    None, True, False, 0, 1, -1, 4, 8, 2**31, 2**53, 2**61, 2**63, 2**64, 1.0, 1e300, "", "U8", "F32", "F4", [], {},
    [0], [4, 4], [0, 0], [0, 4], [4, 8], [2, 0, 2], {"a": "b"}, {"a": 1}, ENTRY, HALF, HALF | {"data_offsets": [4, 8]},
]  # fmt: skip


def mutate(generator, node):
    """A JSON tree with one node replaced, removed, doubled or renamed."""
    if not isinstance(node, dict | list) or not node or generator.random() < 0.2:
        return generator.choice(ODD)
    keys = list(node) if isinstance(node, dict) else list(range(len(node)))
    key, what, copy = generator.choice(keys), generator.random(), node.copy()
    if what < 0.15:
        del copy[key]
    elif what < 0.3 and isinstance(node, dict):
        copy[generator.choice(("__metadata__", "", "b", "shape", "new"))] = copy[key]
    else:
        copy[key] = mutate(generator, node[key])
    return copy


def test_rearranged_headers_are_never_read_otherwise_than_by_safetensors():
    generator = random.Random(21)
    whole = {"__metadata__": {"format": "pt"}, "a": HALF, "b": HALF | {"data_offsets": [4, 8]}}
    accepted = 0
    for _ in range(4000):
        tree = mutate(generator, whole)
        if generator.random() < 0.3:
            tree = mutate(generator, tree)
        accepted += assert_not_laxer(safetensors_bytes(tree, DATA))
    assert accepted > 20


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ('{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}', "-0 where a whole number stands"),
        (r'{"dtype":"U8","shape":[0],"data_offsets":[0,0],"\ud800":1}', "half of a surrogate pair"),
    ],
)
def test_a_number_or_text_that_the_library_refuses_is_refused(entry, says):
    data = safetensors_bytes(f'{{"a":{entry}}}')
    with pytest.raises(safetensors.SafetensorError):
        safetensors.deserialize(data)
    refused(data, says)
