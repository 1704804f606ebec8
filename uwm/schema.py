"""What is demanded of a record that others may have written: checks of JSON values and tensors, as tables. No torch.

A check takes a value and its place, and raises `Unexpected`. Tables of them are put together with `keyed`, `mapped` and
`listed`; `demand` turns what they find into BadInput with the file's name. No check trusts a value's size or depth.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import BadInput
from .escaping import clean

Check = Callable[[Any, str], None]
MAX_DEPTH = 32  # of objects and lists in a value that is kept as it is
MAX_PLACE = 200  # characters of a place
MAX_SHOWN = 60  # characters of a value in a message
LARGEST = 2**63 - 1  # what counts, shapes and seeds may be
_SURROGATE = re.compile("[\ud800-\udfff]")


class Unexpected(Exception):
    """Something in a record is not what it should be; its text says where, what was expected and what was found."""

    def __init__(self, place: str, expected: str, found: Any) -> None:
        super().__init__(f"{clean(place)}{': ' if place else ''}expected {expected}, found {shown(found)}")


def below(place: str, name: str) -> str:
    """The place of a key, cut: what is checked below a key of megabytes must not copy it every time."""
    name = name[:MAX_PLACE]
    return f"{place}.{name}"[-MAX_PLACE:] if place else name


def shown(value: Any) -> str:
    """A value in a message: on one line, and not long."""
    try:
        text = clean(repr(value))
    except ValueError:  # a number of thousands of digits
        text = "a huge number"
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"


def demand(path: Path, check: Check, value: Any, remedy: str, place: str = "") -> None:
    """Check a value that was read from a file. Raises BadInput with file, key, what was expected and found."""
    try:
        check(value, place)
    except RecursionError:
        raise BadInput(f"{path}: damaged: nested too deep; {remedy}") from None
    except Unexpected as found:
        raise BadInput(f"{path}: damaged: {found}; {remedy}") from None


def strict_json(text: str | bytes) -> Any:
    """JSON as its standard has it. Raises ValueError, for NaN and a key that stands twice too, and RecursionError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key stands there twice")
        return found

    def constant(name: str) -> None:
        raise ValueError(f"{name} is no number")

    return json.loads(text, object_pairs_hook=unique, parse_constant=constant)


# ---------------------------------------------------------------- values


def holds(expected: str, condition: Callable[[Any], bool]) -> Check:
    """A value of which a condition holds; `expected` says it in words."""

    def check(value: Any, place: str) -> None:
        if not condition(value):
            raise Unexpected(place, expected, value)

    return check


def _is_number(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False


def whole(least: int = 0, most: int = LARGEST) -> Check:
    """A whole number within bounds."""
    words = "a whole number" if (least, most) == (0, LARGEST) else f"a whole number from {least} to {most}"
    return holds(words, lambda value: type(value) is int and least <= value <= most)


def within(low: float, high: float) -> Check:
    """A finite number within bounds, which it may reach."""
    return holds(f"a number from {low:g} to {high:g}", lambda value: _is_number(value) and low <= value <= high)


def choice(*values: Any) -> Check:
    """One of some values."""
    return holds(
        " or ".join(map(str, values)), lambda value: any(value == v and type(value) is type(v) for v in values)
    )


def matching(pattern: str, words: str) -> Check:
    """A text of a form."""
    return holds(words, lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None)


def nullable(of: Check) -> Check:
    """Null, or a value that passes."""
    return lambda value, place: None if value is None else of(value, place)


def listed(of: Check, length: int | None = None, least: int = 0, most: int | None = None) -> Check:
    """A list whose every item passes."""
    words = f"a list of {length}" if length is not None else "a list of at least one" if least else "a list"
    words += f" of at most {most}" if most is not None else ""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, list) or len(value) < least or length not in (None, len(value)):
            raise Unexpected(place, words, value)
        if most is not None and len(value) > most:
            raise Unexpected(place, words, value)
        for number, item in enumerate(value):
            of(item, f"{place}[{number}]")

    return check


def mapped(of: Check, key: Check | None = None, least: int = 0) -> Check:
    """An object whose every value passes, and every key."""
    words = "an object with at least one key" if least else "an object"

    def check(value: Any, place: str) -> None:
        if not isinstance(value, dict) or len(value) < least:
            raise Unexpected(place, words, value)
        for name, item in value.items():
            inner = below(place, name)
            (key or TEXT)(name, inner)
            of(item, inner)

    return check


def keyed(
    required: Mapping[str, Check], optional: Mapping[str, Check] | None = None, rest: Check | None = None
) -> Check:
    """An object with these keys; of others each value must pass `rest`, by default be plain."""
    known = {**required, **(optional or {})}

    def check(value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise Unexpected(place, "an object", value)
        for name, of in known.items():
            inner = below(place, name)
            if name in value:
                of(value[name], inner)
            elif name in required:
                raise Unexpected(inner, "a value", None)
        mapped(rest or PLAIN)({name: item for name, item in value.items() if name not in known}, place)

    return check


def each(*checks: Check) -> Check:
    """A value that passes all of these."""

    def check(value: Any, place: str) -> None:
        for one in checks:
            one(value, place)

    return check


def _plain(value: Any, place: str, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise Unexpected(place[:MAX_SHOWN], f"at most {MAX_DEPTH} objects and lists in one another", "more")
    if isinstance(value, dict):
        for name, item in value.items():
            TEXT(name, place)
            _plain(item, below(place, name), depth + 1)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _plain(item, f"{place}[{number}]", depth + 1)
    elif isinstance(value, str):
        TEXT(value, place)
    elif type(value) not in (bool, type(None)):
        NUMBER(value, place)


PLAIN: Check = _plain  # any JSON value that can be written again
TEXT = holds("a text", lambda value: isinstance(value, str) and not _SURROGATE.search(value))
NUMBER = holds("a number", _is_number)
COUNT = whole()
FLAG = holds("true or false", lambda value: isinstance(value, bool))
OBJECT = mapped(PLAIN)
ANYTHING: Check = lambda value, place: None  # noqa: E731
NONE = holds("no such key", lambda value: False)  # as the rest of `keyed`
SHA256 = matching("[0-9a-f]{64}", "a sha256")


# ---------------------------------------------------------------- tensors


@dataclass(frozen=True)
class TensorForm:
    """What a tensor of a record must be, as its file's header says it.

    Attributes:
        dtypes: Torch's names of the types that it may have.
        shape: Its sizes; None for any size of at least 1, or of at least 0 where `empty`.
        empty: Whether it may hold nothing.
    """

    dtypes: tuple[str, ...]
    shape: tuple[int | None, ...]
    empty: bool = False

    def check(self, dtype: str, shape: tuple[int, ...], name: str) -> None:
        """Raises Unexpected."""
        fits = len(shape) == len(self.shape)
        fits = fits and all(want in (None, size) for want, size in zip(self.shape, shape, strict=True))
        if dtype not in self.dtypes or not fits or (0 in shape and not self.empty):
            sizes = ", ".join("n" if size is None else str(size) for size in self.shape)
            wanted = f"{' or '.join(self.dtypes)} of [{sizes}]"
            raise Unexpected(f"tensor {name}", wanted, _Words(f"{dtype} of {list(shape)}"))


class _Words(str):
    """Words that a message shows without quotation marks."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


Forms = Mapping[str, TensorForm]  # name -> what it must be


def check_tensors(forms: Forms, optional: Forms, found: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Check which tensors there are, and of what type and shape; name -> (type, shape). Raises Unexpected."""
    for name in forms:
        if name not in found:
            raise Unexpected(f"tensor {name}", "to be there", None)
    for name, (dtype, shape) in found.items():
        form = forms.get(name) or optional.get(name)
        if form is None:
            raise Unexpected(f"tensor {name}", "no tensor of this name", _Words(f"{dtype} of {list(shape)}"))
        form.check(dtype, shape, name)
