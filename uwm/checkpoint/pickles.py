"""Pickles read as data. Every opcode is interpreted here; no class is made and no function is called for a file's sake.

What a pickle wants to make is kept as a name (`Made`). Only tensors and their storages mean something, so the
allow-list below decides what is data, and everything else is reported by name and place.
"""

from __future__ import annotations

import pickletools
import re
import warnings
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

from ..errors import BadInput, Refused

HASHED = 2**61 - 1  # Python hashes a number by its rest modulo this, so multiples of it would all collide
MAX_OPCODES = 3_000_000
MAX_PICKLE = 256 << 20  # bytes
MAX_LINE = 1 << 20  # bytes
ALLOWED = re.compile(
    r"collections (OrderedDict|defaultdict|Counter)"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state|sparse_tensor|qtensor"
    r"|meta_tensor_no_storage)|torch\._tensor _rebuild_from_type_v2|torch Tensor"
    r"|torch (\w+Storage|Size|device|float\w+|bfloat16|half|double|u?int\d+|long|short|bool|complex\w+|q\w+|sparse_\w+"
    r"|strided|per_\w+)"
    r"|torch\.storage (UntypedStorage|TypedStorage|_LegacyStorage)|torch\.nn\.parameter (Parameter|Buffer)"
    r"|torch\.serialization _get_layout|torch\.torch_version TorchVersion"
    r"|torch\.jit\._pickle (build_\w+|restore_type_tag)|__torch__[\w.]* \w+"
    r"|argparse Namespace|pathlib(\._local)? \w*Path|_codecs encode"
    r"|(builtins|__builtin__) (set|frozenset|complex|bytearray|slice|x?range|list|dict|tuple|int|long|float|bool|str"
    r"|unicode|bytes|object|Ellipsis|NotImplemented)|collections deque"
    r"|types SimpleNamespace|datetime (datetime|date|time|timedelta|timezone)|uuid (UUID|SafeUUID)|decimal Decimal"
    r"|fractions Fraction|numpy\.random\._pickle __(randomstate|generator|bit_generator)_ctor"
    r"|numpy\.random\.(_\w+|bit_generator) (PCG64|PCG64DXSM|MT19937|Philox|SFC64|SeedSequence"
    r"|__pyx_unpickle_SeedSequence)"
    r"|numpy (dtype|ndarray|u?int\d+|float\d+|bool_?)|numpy\.(_?core)\.multiarray (scalar|_reconstruct)"
    r"|numpy\.dtypes \w+"
)


@dataclass(eq=False)
class Name:
    """A class or function that a pickle names, never looked up."""

    name: str  # "module attribute"


@dataclass(eq=False, repr=False)
class Made:
    """What a pickle would have made: whose call, with what, and what was then put into it."""

    name: str
    arguments: tuple
    state: Any = None
    items: dict = field(default_factory=dict)


@dataclass(eq=False, repr=False)
class Persistent:
    """A reference to something outside of the pickle: a storage."""

    identity: Any


class _Bounded:
    """A stream from which one pickle may take only so much, and never more than is asked for at a time."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.tell, self.end = stream, stream.tell, stream.tell() + MAX_PICKLE

    def read(self, size: int = -1) -> bytes:
        if size < 0 or self.tell() + size > self.end:
            raise ValueError(f"more than {MAX_PICKLE >> 20} MB")
        return self.stream.read(size)

    def readline(self) -> bytes:
        return self.stream.readline(MAX_LINE)


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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in texts
            for count, (opcode, argument, position) in enumerate(pickletools.genops(cast(BinaryIO, _Bounded(stream)))):
                if count > MAX_OPCODES:
                    raise ValueError(f"more than {MAX_OPCODES} steps")
                machine.step(opcode.name, argument, (position or start) - start)
        value = machine.result()
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        if machine.refused:
            raise _refusal(machine.refused, where) from None
        raise BadInput(f"{where}: damaged pickle ({str(error) or type(error).__name__}); download it again") from None
    if machine.refused:
        raise _refusal(machine.refused, where)
    return value


def _refusal(refused: dict[str, int], where: str) -> Refused:
    names = [f"{_printable(name)} (byte {place})" for name, place in list(refused.items())[:10]]
    more = f" and {len(refused) - 10} more" if len(refused) > 10 else ""
    return Refused(
        f"{where}: refused, this pickle asks for {', '.join(names)}{more}; re-save only its state_dict with torch.save"
    )


def _printable(name: str) -> str:
    """A name for the terminal: of bounded length, and what would steer the terminal escaped."""
    return name.replace(" ", ".", 1)[:100].encode("unicode_escape").decode()


class _Machine:
    """The pickle machine: a stack, the stacks below each open mark, and a memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.refused: dict[str, int] = {}

    def pop(self) -> Any:
        return self.stack.pop()

    def take(self, count: int) -> tuple:
        """The topmost values, in the order in which they were pushed."""
        return tuple(reversed([self.stack.pop() for _ in range(count)]))

    def group(self) -> list[Any]:
        """Take everything above the last mark."""
        values, self.stack = self.stack, self.below.pop()
        return values

    def result(self) -> Any:
        value = self.stack.pop()
        if self.stack or self.below:
            raise ValueError("values are left over at its end")
        return value

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
        self.below.append(self.stack)
        self.stack = []

    def do_pop(self, argument: Any, position: int) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.group()

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
        values = self.group()
        self.stack.append(values)

    do_frozenset = do_list

    def do_tuple(self, argument: Any, position: int) -> None:
        values = self.group()
        self.stack.append(tuple(values))

    def do_tuple1(self, argument: Any, position: int) -> None:
        self.stack.append(self.take(1))

    def do_tuple2(self, argument: Any, position: int) -> None:
        self.stack.append(self.take(2))

    def do_tuple3(self, argument: Any, position: int) -> None:
        self.stack.append(self.take(3))

    def do_dict(self, argument: Any, position: int) -> None:
        values = self.group()
        self.stack.append({})
        self._put(values)

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
        """A key that is no plain value is kept as something that equals nothing; hashing it could take for ever."""
        target = self.stack[-1].items if isinstance(self.stack[-1], Made) else self.stack[-1]
        if not isinstance(target, dict) or len(values) % 2:
            raise ValueError("items for something that is no dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            plain = key is None or isinstance(key, str | float | bytes) or (isinstance(key, int) and abs(key) < HASHED)
            target[key if plain else Made("key", (key,))] = value

    # -- the memo

    def do_memoize(self, argument: Any, position: int) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def do_put(self, argument: int, position: int) -> None:
        if not 0 <= int(argument) < HASHED:
            raise ValueError("a place in the memo that is none")
        self.memo[int(argument)] = self.stack[-1]

    do_binput = do_long_binput = do_put

    def do_get(self, argument: int, position: int) -> None:
        self.stack.append(self.memo[int(argument)])

    do_binget = do_long_binget = do_get

    # -- names, calls and references

    def do_global(self, argument: str, position: int) -> None:
        self.stack.append(self.name(argument, position))

    def do_stack_global(self, argument: Any, position: int) -> None:
        module, attribute = self.take(2)
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise ValueError("a name that is no text")
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
        if not isinstance(self.stack[-1], Made) or self.stack[-1].state is not None:
            raise ValueError("a state for something that takes none, or takes it once")
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
