"""Pickles read as data. Every opcode is interpreted here; no class is made and no function is called for a file's sake.

What a pickle wants to make is kept as a name (`Made`). Only tensors and their storages mean something, so the
allow-list below decides what is data, and everything else is reported by name and place.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from ..errors import BadInput, Refused

MAX_OPCODES = 20_000_000
ALLOWED = re.compile(
    r"collections (OrderedDict|defaultdict|Counter)"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state|sparse_tensor|qtensor"
    r"|meta_tensor_no_storage)"
    r"|torch (\w+Storage|Size|device|float\w+|bfloat16|half|double|u?int\d+|long|short|bool|complex\w+|q\w+|sparse_\w+"
    r"|strided|per_\w+)"
    r"|torch\.storage (UntypedStorage|TypedStorage|_LegacyStorage)|torch\.nn\.parameter Parameter"
    r"|torch\.serialization _get_layout|torch\.torch_version TorchVersion"
    r"|torch\.jit\._pickle (build_\w+|restore_type_tag)|__torch__[\w.]* \w+"
    r"|argparse Namespace|pathlib \w*Path|_codecs encode"
    r"|(builtins|__builtin__) (set|frozenset|complex|bytearray|slice|range)"
    r"|numpy (dtype|ndarray|u?int\d+|float\d+|bool_?)|numpy\.(_?core)\.multiarray (scalar|_reconstruct)"
    r"|numpy\.dtypes \w+"
)


@dataclass(eq=False)
class Name:
    """A class or function that a pickle names, never looked up."""

    name: str  # "module attribute"


@dataclass(eq=False)
class Made:
    """What a pickle would have made: whose call, with what, and what was then put into it."""

    name: str
    arguments: tuple
    state: Any = None
    items: dict = field(default_factory=dict)


@dataclass(eq=False)
class Persistent:
    """A reference to something outside of the pickle: a storage."""

    identity: Any


class _Mark:
    """Where a group of values begins on the stack."""


def read_pickle(stream: BinaryIO, where: str) -> Any:
    """Interpret one pickle, to its STOP.

    Args:
        stream: At the pickle's first byte; left after its last.
        where: The file's name for messages.

    Returns:
        Python's own plain values, `Name`, `Made` and `Persistent`.

    Raises:
        Refused: It names something off the allow-list; all such names are listed with their byte offsets.
        BadInput: It is damaged or out of bounds.
    """
    machine, start = _Machine(), stream.tell()
    try:
        for count, (opcode, argument, position) in enumerate(pickletools.genops(stream)):
            if count > MAX_OPCODES:
                raise ValueError(f"more than {MAX_OPCODES} steps")
            machine.step(opcode.name, argument, (position or start) - start)
        value = machine.pop()
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        if machine.refused:
            raise _refusal(machine.refused, where) from None
        raise BadInput(f"{where}: damaged pickle ({error or type(error).__name__}); download it again") from None
    if machine.refused:
        raise _refusal(machine.refused, where)
    return value


def _refusal(refused: dict[str, int], where: str) -> Refused:
    names = [f"{name.replace(' ', '.', 1)} (byte {place})" for name, place in list(refused.items())[:10]]
    more = f" and {len(refused) - 10} more" if len(refused) > 10 else ""
    return Refused(
        f"{where}: refused, this pickle asks for {', '.join(names)}{more}; re-save only its state_dict with torch.save"
    )


class _Machine:
    """The pickle machine: a stack and a memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.refused: dict[str, int] = {}

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _Mark:
            raise ValueError("a mark where a value belongs")
        return value

    def group(self) -> list[Any]:
        """Take everything above the last mark."""
        place = len(self.stack) - 1 - self.stack[::-1].index(_Mark)
        values = self.stack[place + 1 :]
        del self.stack[place:]
        return values

    def step(self, opcode: str, argument: Any, position: int) -> None:
        if opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _VALUES:
            self.stack.append(argument)
        elif opcode in _FRAMING:
            pass
        elif (method := getattr(self, f"do_{opcode.lower()}", None)) is not None:
            method(argument, position)
        else:
            raise ValueError(f"opcode {opcode} at byte {position} has no place in a checkpoint")

    def name(self, name: str, position: int) -> Name:
        if not ALLOWED.fullmatch(name):
            self.refused.setdefault(name, position)
        return Name(name)

    def make(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise ValueError("a call of something that has no name")
        self.stack.append(Made(function.name, arguments))

    # -- groups

    def do_mark(self, argument: Any, position: int) -> None:
        self.stack.append(_Mark)

    def do_pop(self, argument: Any, position: int) -> None:
        self.stack.pop()

    def do_pop_mark(self, argument: Any, position: int) -> None:
        self.group()

    def do_dup(self, argument: Any, position: int) -> None:
        self.stack.append(self.stack[-1])

    def do_empty_list(self, argument: Any, position: int) -> None:
        self.stack.append([])

    def do_empty_dict(self, argument: Any, position: int) -> None:
        self.stack.append({})

    do_empty_set = do_empty_list

    def do_list(self, argument: Any, position: int) -> None:
        self.stack.append(self.group())

    do_frozenset = do_list

    def do_tuple(self, argument: Any, position: int) -> None:
        self.stack.append(tuple(self.group()))

    def do_tuple1(self, argument: Any, position: int) -> None:
        self.stack[-1:] = [(self.stack[-1],)]

    def do_tuple2(self, argument: Any, position: int) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def do_tuple3(self, argument: Any, position: int) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def do_dict(self, argument: Any, position: int) -> None:
        self.stack.append({})
        self._put(self.group_below_top())

    def group_below_top(self) -> list[Any]:
        top = self.stack.pop()
        values = self.group()
        self.stack.append(top)
        return values

    def do_append(self, argument: Any, position: int) -> None:
        value = self.pop()
        self._extend([value])

    def do_appends(self, argument: Any, position: int) -> None:
        self._extend(self.group())

    do_additems = do_appends

    def _extend(self, values: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)
        elif not isinstance(self.stack[-1], Made):
            raise ValueError("items for something that is no list")

    def do_setitem(self, argument: Any, position: int) -> None:
        value, key = self.pop(), self.pop()
        self._put([key, value])

    def do_setitems(self, argument: Any, position: int) -> None:
        self._put(self.group())

    def _put(self, values: list[Any]) -> None:
        """Keys that are no plain values (a tuple, an object) cannot name a tensor and are dropped."""
        target = self.stack[-1].items if isinstance(self.stack[-1], Made) else self.stack[-1]
        if not isinstance(target, dict) or len(values) % 2:
            raise ValueError("items for something that is no dictionary")
        pairs: Iterator = zip(values[::2], values[1::2], strict=True)
        target.update((k, v) for k, v in pairs if k is None or isinstance(k, str | int | float | bytes))

    # -- the memo

    def do_memoize(self, argument: Any, position: int) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def do_put(self, argument: int, position: int) -> None:
        self.memo[int(argument)] = self.stack[-1]

    do_binput = do_long_binput = do_put

    def do_get(self, argument: int, position: int) -> None:
        self.stack.append(self.memo[int(argument)])

    do_binget = do_long_binget = do_get

    # -- names, calls and references

    def do_global(self, argument: str, position: int) -> None:
        self.stack.append(self.name(argument, position))

    def do_stack_global(self, argument: Any, position: int) -> None:
        attribute, module = self.pop(), self.pop()
        self.stack.append(self.name(f"{module} {attribute}", position))

    def do_inst(self, argument: str, position: int) -> None:
        arguments = tuple(self.group())
        self.make(self.name(argument, position), arguments)

    def do_obj(self, argument: Any, position: int) -> None:
        function, *arguments = self.group()
        self.make(function, tuple(arguments))

    def do_reduce(self, argument: Any, position: int) -> None:
        arguments, function = self.pop(), self.pop()
        self.make(function, arguments)

    do_newobj = do_reduce

    def do_newobj_ex(self, argument: Any, position: int) -> None:
        self.pop()
        self.do_reduce(None, position)

    def do_ext1(self, argument: int, position: int) -> None:
        self.stack.append(self.name(f"copyreg extension_{argument}", position))

    do_ext2 = do_ext4 = do_ext1

    def do_build(self, argument: Any, position: int) -> None:
        state = self.pop()
        if isinstance(self.stack[-1], Made):
            self.stack[-1].state = state

    def do_binpersid(self, argument: Any, position: int) -> None:
        self.stack.append(Persistent(self.pop()))

    def do_persid(self, argument: str, position: int) -> None:
        self.stack.append(Persistent(argument))


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_FRAMING = {"PROTO", "FRAME", "STOP"}
_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
