"""Changes of a pickle by its opcodes: taken away, doubled, exchanged, with other arguments, names and numbers."""

from __future__ import annotations

import functools
import pickletools
import random
import struct

from fuzz.mutations import mutated_bytes

GLOBALS = [
    "collections OrderedDict", "collections Counter", "collections defaultdict", "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3", "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_sparse_tensor", "torch._utils _rebuild_qtensor", "torch._utils _rebuild_wrapper_subclass",
    "torch._utils _rebuild_meta_tensor_no_storage", "torch._utils _rebuild_parameter_with_state",
    "torch._tensor _rebuild_from_type_v2", "torch Tensor", "torch.nn.parameter Parameter", "torch FloatStorage",
    "torch HalfStorage", "torch BFloat16Storage", "torch LongStorage", "torch ByteStorage", "torch ComplexFloatStorage",
    "torch.storage UntypedStorage", "torch Size", "torch device", "torch float32", "torch float8_e5m2", "torch uint16",
    "torch.serialization _get_layout", "builtins set", "builtins bytearray", "builtins complex", "_codecs encode",
    "argparse Namespace", "numpy dtype", "numpy.core.multiarray scalar", "numpy._core.multiarray _reconstruct",
    "os system", "posix system", "builtins eval", "builtins getattr", "builtins __import__", "subprocess Popen",
    "torch load", "torch.hub load", "torch._utils os", "torch.os system", "collections OrderedDict.__init__", "x y",
    "__builtin__ exec", "nt system", "importlib import_module", "numpy load", "torch.jit._pickle build_intlist",
    "pathlib Path", "torch._C _rebuild", "torch._utils  _rebuild_tensor_v2", " ", "__torch__.a B",
    "torch float4_e2m1fn_x2", "torch float6_e2m3",
]  # fmt: skip
PIECES = [
    b"(", b"t", b"l", b"d", b"]", b"}", b")", b"0", b"1", b"2", b"N", b"\x88", b"\x89", b"R", b"b", b"Q", b"e",
    b"a", b"s",
    b"u", b"o", b"\x81", b"\x85", b"\x86", b"\x87", b"\x8f", b"\x90", b"\x91", b"\x92", b"\x93", b"\x94", b"\x97",
    b"\x98",
    b".", b"q\x00", b"h\x00", b"h\x01", b"K\x00", b"K\x01", b"K\xff", b"J\xff\xff\xff\xff", b"J\xff\xff\xff\x7f",
    b"p0\n", b"g0\n", b"I01\n",
    b"I-1\n", b"L5L\n", b"F1.5\n", b"S'a'\n", b"Va\n", b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"\x8a\x01\x80",
    b"\x8b\x02\0\0\0ab",
    b"G\x7f\xf8\0\0\0\0\0\0", b"X\x01\0\0\0a", b"X\x03\0\0\0\xed\xa0\x80", b"\x8c\x02os", b"U\x01a",
    b"T\x01\0\0\0a", b"B\x01\0\0\0a",
    b"C\x01a", b"\x96" + struct.pack("<Q", 1) + b"a", b"\x80\x05", b"\x80\x09", b"\x95" + struct.pack("<Q", 9),
    b"\x82\x01", b"P0\n",
    b"c__main__\nx\n", b"(ios\nsystem\n", b"\x8c\x01a\x8c\x01b\x93",
]  # fmt: skip


@functools.lru_cache(64)
def parts_of(pickled: bytes) -> tuple[bytes, ...]:
    """The pickle's opcodes with their arguments; all of it as one where it is damaged."""
    try:
        begins = [position for _, _, position in pickletools.genops(pickled)]
    except Exception:
        return (pickled,)
    return tuple(pickled[begin:end] for begin, end in zip(begins, [*begins[1:], len(pickled)], strict=True))


def mutated_pickle(pickled: bytes, other: bytes, rng: random.Random) -> bytes:
    """A pickle with some opcodes changed, or spliced with another one."""
    if rng.random() < 0.1:
        return mutated_bytes(pickled, rng)
    parts = [*parts_of(pickled)]
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        place, what = rng.randrange(len(parts)), rng.random()
        if what < 0.15:
            del parts[place : place + rng.choice([1, 1, 2, 5])]
            parts = parts or [b"."]
        elif what < 0.25:
            parts.insert(place, parts[rng.randrange(len(parts))])
        elif what < 0.35:
            there = rng.randrange(len(parts))
            parts[place], parts[there] = parts[there], parts[place]
        elif what < 0.5:
            parts[place : place + rng.randrange(2)] = [rng.choice(PIECES)]
        elif what < 0.85:
            parts[place] = _other_part(parts[place], rng)
        else:
            foreign = parts_of(other)
            begin = rng.randrange(len(foreign))
            parts[place:place] = foreign[begin : begin + rng.choice([1, 2, 5, 40])]
    return b"".join(parts)


def _other_part(part: bytes, rng: random.Random) -> bytes:
    """An opcode with another argument of its kind."""
    code = part[:1]
    if code == b"c":
        return b"c" + rng.choice(GLOBALS).replace(" ", "\n", 1).encode() + b"\n"
    if code == b"X":
        text = rng.choice(
            [b"", b"a", b"0", b"1", b"storage", b"module", b"cuda:7", b"a.b", b"\xff", b"state_dict", b"x" * 300]
        )
        return b"X" + struct.pack("<I", len(text)) + text
    if code in b"KMJ\x8a":
        return rng.choice([b"K\x00", b"K\x01", b"K\x02", b"K\x04", b"K\x0c", b"M\xff\xff", b"J\xff\xff\xff\xff",
        b"\x88", b"N",
            b"\x8a\x08" + b"\0" * 6 + b"\x01\0", b"G?\xf0\0\0\0\0\0\0", b"\x8a\x05\0\0\0\0\x02"])  # fmt: skip
    if code in b"qhrj":
        return code + bytes([rng.randrange(24)]) + part[2:]
    if code in b"\x88\x89N":
        return rng.choice([b"\x88", b"\x89", b"N", b")", b"]", b"}", b"K\x01"])
    return mutated_bytes(part, rng)
