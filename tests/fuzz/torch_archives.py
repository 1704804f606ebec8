"""Torch files: whatever ours reads is what `torch.load(weights_only=True)` reads, and nothing ever runs.

Each side may refuse what the other reads only for a reason that stands below.
"""

from __future__ import annotations

import argparse
import encodings.cp437
import encodings.raw_unicode_escape
import encodings.unicode_escape  # noqa: F401 - by pickles and zips, and imported for the first time would be a finding
import io
import math
import random
import struct
import warnings
import zipfile
import zlib
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz.headers import differ
from fuzz.mutations import mutated_bytes
from fuzz.opcodes import mutated_pickle
from fuzz.targets import Finding, Target, explained, nothing_runs, refusal
from torch_files import Reference, attacks, legacy, pickle_of, saved, storages_of, tensor

from uwm.checkpoint.archive import open_archive
from uwm.checkpoint.dtypes import PACKED
from uwm.checkpoint.opening import GROWTH
from uwm.checkpoint.tensors import StoredTensor
from uwm.errors import BadInput, Refused

PAIRS = [torch.float4_e2m1fn_x2] if hasattr(torch, "float4_e2m1fn_x2") else []
UNFIT, NOTHING = "only tensors that safetensors has no form for", "no dictionary of tensors alone"
EXPANDED = "tensors that ask for many times the file's size"
STRICTER = {
    EXPANDED: "what is one value and as many as it likes would fill the disk",
    UNFIT: "sparse, quantised and meta tensors are refused with their kind",
    "one storage is referred to as two": "torch.save never writes a storage under two types",
    r"a tensor of \[.*\b0\b.*\] does not fit": "an empty view that begins behind its storage's end",
    "bytes follow": "what follows could be another file for another reader",
    "is doubled, compressed, encrypted or damaged": "one view of a zip, or none",
    "something else than zip entries stands before": "the same",
    "the zip's entries do not fill the file": "the same",
    "damaged torch file .(Corrupt extra field|Bad CRC-32|Bad magic number|zip file version)": "torch checks less",
    "a tensor's checksum does not fit": "torch checks no storage's checksum",
    r"model.pt: x/.*pkl: ": "whatever else is pickled in a zip is held to the same rules",
    "stored in big-endian order": "it must say that it is little-endian",
    "cut off inside its storages": "a reference and its file disagree on how long a storage is",
    "values are left over": "a pickle of two contents, of which torch takes the upper one",
    "damaged torch file .KeyError: ": "a storage without bytes, for which torch takes what is in memory",
    "a shape or stride that is none": "an empty tensor with a stride below 0",
    "a reference to something that is no storage": "true for a size, or another kind of storage",
    "a call of something that has no name": "torch calls with a list too",
    "requires_grad or hooks that are none": "torch takes a class for hooks",
    "a tensor with flags that are none": "torch takes an empty tuple for no flags",
    "neither there nor absent": "a mark of a tensor that says false, which torch takes for true",
    "its version is": "torch reads versions from 0, in any form that C reads",
}
LAXER = {
    "^.?.?Unsupported (global|class)": "stand-ins that stay inert",
    r"^.?.?Unsupported operand \d+": "opcodes that torch.save never writes and that have but one meaning",
    "unsupported persistent id": "a reference beside the content, in what is told of the machine, which is not used",
    "persistent_load id must be tuple": "a reference that no tensor uses, to something that is no storage",
    "^UnicodeDecodeError: ": "the archive's own id, which ours has no use for",
    "unhashable type": "a key that is no text; no state dict has it, and it is never looked up",
    "^(TypeError|AttributeError|AssertionError): ": "torch calls what a pickle names in vain; ours has a stand-in",
    "too many values to unpack|not enough values to unpack": "a reference as in the other kind of file",
    "require(s)? grad": "whether a tensor is to be trained is nothing to us",
    "size is inconsistent with indices": "a sparse tensor, which is no weight and left out",
    "requires_grad must be a bool": "a broken tensor in what is no state dict, which is left out",
    "Trying to resize storage that is not resizable": "a broken tensor beside the state dict, which is left out",
    "Can only (SETITEM for dict|append to lists)": "items put on a stand-in, which stay there",
}


def targets(root: Path) -> list[Target]:
    """Pickles in sound zips, damaged zips, and files from before there were zips."""
    path = root / "model.pt"

    def check(data: bytes) -> bool:
        return check_archive(data, path)

    contents = _contents()
    pickles = [(pickle_of(data), storages_of(data)) for data in contents]
    attackers = [*attacks("touch /dev/shm/uwm-fuzz-canary").values()]
    zips = [_zip(pickled, storages) for pickled, storages in pickles]
    olds = [saved(_state(), _use_new_zipfile_serialization=False), legacy({"a": tensor(Reference(more=(None,)))})]

    def pickled(rng: random.Random) -> bytes:
        data, storages = rng.choice(pickles)
        other = rng.choice(attackers) if rng.random() < 0.2 else rng.choice(pickles)[0]
        return _zip(mutated_pickle(data, other, rng), storages)

    return [
        Target("torch pickle", 2, pickled, check),
        Target("torch zip", 2, lambda rng: mutated_zip(rng.choice(zips), rng), check),
        Target("torch legacy", 1, lambda rng: _mutated_legacy(rng.choice(olds), rng), check),
    ]


def _state() -> dict[str, torch.Tensor]:
    whole = torch.arange(12.0).reshape(3, 4)
    return {"a": whole[1:, ::2], "b": whole.T, "c": torch.ones(0, 3), "d": torch.tensor([1, -2], dtype=torch.int16)}


def _contents() -> list[bytes]:
    """Files as torch.save writes them, of everything that ours has a meaning for."""
    model = torch.nn.Linear(2, 2)
    state = OrderedDict(w=model.weight, tied=model.weight, h=torch.ones(2, dtype=torch.bfloat16))
    training = {
        "state_dict": _state(), "epoch": 3, "args": argparse.Namespace(lr=0.1, path="x"), "best": np.float64(0.5),
        "seen": {1, 2}, "other": Counter("ab"), "by": defaultdict(list), "size": torch.Size([2]), "x": (None, True,
        b"y"),
    }  # fmt: skip
    odd = {
        "c": torch.tensor([1 + 2j]).conj(), "n": torch._neg_view(torch.ones(2)),
        "u": torch.ones(2, dtype=torch.uint16), "q": torch.ones(2, dtype=torch.float8_e4m3fn),
        "e": torch.ones(1).expand(3),
    }  # fmt: skip
    odd |= {f"{dtype}": torch.ones(2, 3, dtype=torch.uint8).view(dtype).T for dtype in PAIRS}
    unfit = {"s": torch.eye(2).to_sparse(), "m": torch.ones(1, device="meta")}
    return [saved(content) for content in (_state(), state, training, odd, unfit, {"model": state, "ema": _state()})]


def _mutated_legacy(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        data = mutated_bytes(data, rng)
    return data


# ---------------------------------------------------------------- zips


def _zip(pickled: bytes, storages: Mapping[str, bytes]) -> bytes:
    """A sound zip as torch.save writes it, without its padding."""
    entries = {"x/data.pkl": pickled, "x/byteorder": b"little", "x/version": b"3\n"}
    return joined([_entry(name, data) for name, data in (entries | _named(storages)).items()])


def _named(storages: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"x/data/{key}": data for key, data in storages.items()}


def _entry(name: str, data: bytes) -> dict[str, Any]:
    encoded = name.encode()
    crc, size = zlib.crc32(data), len(data)
    both = {"flags": 0, "method": 0, "crc": crc, "packed": size, "size": size, "name": encoded, "extra": b""}
    return {"local": both, "central": dict(both), "data": data, "offset": None, "before": b"", "after": b""}


def joined(entries: list[dict[str, Any]], tail: bytes = b"", **end: int) -> bytes:
    """A zip of entries whose local and central records may say different things."""
    body, directory = b"", b""
    for entry in entries:
        body += entry["before"]
        offset = len(body) if entry["offset"] is None else entry["offset"]
        one, other = entry["local"], entry["central"]
        sizes = one["crc"], one["packed"], one["size"], len(one["name"]), len(one["extra"])
        body += struct.pack("<4s5H3I2H", b"PK\3\4", 20, one["flags"], one["method"], 0, 33, *sizes)
        body += one["name"] + one["extra"] + entry["data"] + entry["after"]
        sizes = other["crc"], other["packed"], other["size"], len(other["name"]), len(other["extra"]), 0, 0, 0, 0
        directory += struct.pack(
            "<4s6H3I5H2I", b"PK\1\2", 20, 20, other["flags"], other["method"], 0, 33, *sizes, offset
        )
        directory += other["name"] + other["extra"]
    count = end.get("count", len(entries)) & 0xFFFF
    size, start = end.get("size", len(directory)), end.get("start", len(body))
    record = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, size & 0xFFFFFFFF, start & 0xFFFFFFFF, len(tail))
    return body + directory + record + tail


def mutated_zip(data: bytes, rng: random.Random) -> bytes:
    """A zip with bytes changed, or written anew with some lie in its records."""
    if rng.random() < 0.4:
        for _ in range(rng.choice([1, 1, 2, 4])):
            data = mutated_bytes(data, rng)
        return data
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [_entry(info.filename, archive.read(info)) for info in archive.infolist()]
    more: dict[str, Any] = {}
    for _ in range(rng.choice([1, 1, 1, 2])):
        _lie(entries, more, rng)
    return more.pop("prefix", b"") + joined(entries, **more) + more.pop("suffix", b"")


NAMES = ["x/data.pkl", "x/data/0", "x/data/9", "y/data.pkl", "x/sub/data.pkl", "x/constants.pkl", "x/code/a.py",
    "/x/data.pkl",
    "../data.pkl", "x\\data.pkl", "X/DATA.PKL", "x/data.pkl\0", "é/data.pkl", "x/", "", "x/.data/serialization_id",
    "x/byteorder", "x/.format_version"]  # fmt: skip


def _lie(entries: list[dict[str, Any]], more: dict[str, Any], rng: random.Random) -> None:
    """Change one thing of a zip."""
    place = rng.randrange(len(entries))
    entry, what = entries[place], rng.randrange(14)
    both = entry["local"], entry["central"]
    if what == 0 and len(entries) > 1:
        del entries[place]
    elif what == 1:
        entries.insert(rng.randrange(len(entries)), {**entry, "local": dict(both[0]), "central": dict(both[1])})
    elif what == 2:
        both[0]["name"] = both[1]["name"] = rng.choice(NAMES).encode()
    elif what == 3:
        _compress(entry, rng)
    elif what == 4:
        _replace(entry, mutated_bytes(entry["data"], rng) if entry["data"] else b"x")
    elif what == 5:
        junk = rng.choice([b"\0", b"junk", b"PK\5\6" + bytes(18), b"\x80\x02."])
        more[rng.choice(["prefix", "suffix", "tail"])] = junk
    elif what == 6:
        more[rng.choice(["count", "size", "start"])] = rng.choice([0, 1, 2, 46, 0xFFFF, 0xFFFFFFFF])
    else:
        _other_record(entry, rng)


def _other_record(entry: dict[str, Any], rng: random.Random) -> None:
    """One of an entry's two records says something else, or lies elsewhere."""
    record, size = entry[rng.choice(["local", "central"])], len(entry["data"])
    what = rng.randrange(7)
    if what == 0:
        record["name"] = rng.choice(NAMES).encode()
    elif what == 1:
        record[rng.choice(["crc", "packed", "size"])] = rng.choice([0, 1, 2**31, 0xFFFFFFFF, size + 1])
    elif what == 2:
        record["flags"] = rng.choice([1, 8, 0x800, 0x2000, 0xFFFF])
    elif what == 3:
        record["method"] = rng.choice([8, 12, 14, 99])
    elif what == 4:
        extra = struct.pack("<HHQQQ", 1, 24, size, size, rng.choice([0, 2**40]))
        odd = b"FB" + struct.pack("<H", 4) + b"ZZZZ"
        record["extra"] = rng.choice([b"\0", extra, extra[:20], odd, b"\1\0\xff\xff"])
    elif what == 5:
        entry["offset"] = rng.choice([0, 1, 30, 0xFFFFFFFF, 2**31])
    else:
        entry[rng.choice(["before", "after"])] = rng.choice([b"\0", b"PK\3\4", rng.randbytes(30), b"\x80\x02}q\0."])


def _replace(entry: dict[str, Any], data: bytes) -> None:
    """Other data, with all records true."""
    entry["data"] = data
    for record in (entry["local"], entry["central"]):
        record |= {"crc": zlib.crc32(data), "packed": len(data), "size": len(data)}


def _compress(entry: dict[str, Any], rng: random.Random) -> None:
    packer = zlib.compressobj(wbits=-15)
    whole = entry["data"] if rng.random() < 0.7 else bytes(100_000)
    packed = packer.compress(whole) + packer.flush()
    entry["data"] = packed
    for record in (entry["local"], entry["central"]):
        record |= {"crc": zlib.crc32(whole), "packed": len(packed), "size": len(whole), "method": 8}


# ---------------------------------------------------------------- outcomes


def check_archive(data: bytes, path: Path) -> bool:
    """Ours against torch's own reader of weights, and nothing may run while ours reads."""
    path.write_bytes(data)
    with nothing_runs():
        ours, why = _read(path)
    theirs, other = _torch_reads(data)
    if ours is None:
        if theirs is not None and [*_places(theirs)] and not explained(why, STRICTER):
            raise Finding(f"we refuse what torch reads: {why[:300]}")
        return False
    if theirs is None:
        if not explained(other, LAXER):
            raise Finding(f"torch refuses what we read: {other[:300]}")
        return True
    _compare(ours, dict(_places(theirs)))
    return True


def _read(path: Path) -> tuple[dict[str, dict[str, torch.Tensor]] | None, str]:
    """Our state dicts by their places, or why there are none; those that no safetensors file can hold are left out."""
    try:
        found = open_archive(path).state_dicts
        held = [tensor for tensors in found.values() for tensor in tensors.values() if isinstance(tensor, StoredTensor)]
        if sum(math.prod(t.shape) * t.dtype.itemsize for t in held) > GROWTH * path.stat().st_size:
            return None, EXPANDED
        whole = {
            place: {name: _values(tensor) for name, tensor in held.items()}
            for place, held in found.items()
            if all(isinstance(tensor, StoredTensor) for tensor in held.values())
        }
    except (BadInput, Refused) as error:
        return None, refusal(error)
    return (whole, "") if whole else (None, UNFIT if found else NOTHING)


def _values(tensor: StoredTensor) -> torch.Tensor:
    """What we read, in torch's type too where we have the bytes alone: pairs of values smaller than one."""
    if tensor.dtype not in PACKED.values():
        return tensor.read()
    return torch.from_numpy(tensor.bits().array).view(tensor.dtype.torch)


def _torch_reads(data: bytes) -> tuple[Any, str]:
    """What torch reads, or why it does not; whatever goes wrong in there, it does not read the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu"), ""
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        return None, text.partition("WeightsUnpickler error: ")[2] or text


def _places(content: Any) -> Iterator[tuple[str, Mapping[str, torch.Tensor]]]:
    """Dictionaries of names and tensors in what torch read, by the same rule as ours."""
    seen: set[int] = set()

    def search(value: Any, name: str, depth: int) -> Iterator[tuple[str, Mapping[str, torch.Tensor]]]:
        if not isinstance(value, dict) or not value or id(value) in seen:
            return
        seen.add(id(value))
        if all(isinstance(key, str) and isinstance(inner, torch.Tensor) for key, inner in value.items()):
            yield name, value
        elif depth < 3:
            for key, inner in value.items():
                if isinstance(key, str):
                    yield from search(inner, f"{name}.{key}" if name else key, depth + 1)

    return search(content, "", 0)


def _compare(ours: dict[str, dict[str, torch.Tensor]], theirs: dict[str, Mapping[str, torch.Tensor]]) -> None:
    if not ours.keys() <= theirs.keys():
        raise Finding(f"other state dicts: ours at {sorted(ours)}, torch's at {sorted(theirs)}")
    for place, held in ours.items():
        for name, one in held.items():
            other = theirs[place].get(name)
            if other is None:
                raise Finding(f"torch has no {name!r} at {place!r}")
            other = other.detach()
            if one.dtype != other.dtype or one.shape != other.shape or differ(one, other.contiguous()):
                raise Finding(f"other values of {name!r} at {place!r}: {one} and {other}"[:300])
