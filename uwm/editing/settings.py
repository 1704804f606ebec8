"""Settings of editors, declared once: a field is a flag, a TOML key, a setting of `uwm compare` and of uwm.json."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from numbers import Integral, Real
from typing import Any

from ..errors import BadInput

KINDS: dict[type, Any] = {float: (Real, str), int: (Integral, str), str: str, bool: bool}  # and what each is read from


@dataclass(frozen=True)
class Range:
    """Values that a search tries.

    Attributes:
        low, high: The least and the greatest; whole numbers for a setting that is one.
        log: Whether it is the logarithm that is drawn.
        start: What is tried first where the setting's own default is None.
    """

    low: float
    high: float
    log: bool = False
    start: float | None = None


def setting(default: Any, kind: type, help: str, choices: Iterable[str] = (), search: Any = None) -> Any:
    """A field of an editor's frozen dataclass of settings.

    Args:
        default: None where the editor decides.
        kind: ``float``, ``int``, ``str`` or ``bool``: what the text on a command line is read as.
        help: One sentence, as the flag's help.
        choices: The words that a text may be; such a word alone sets it in `uwm compare`.
        search: What a search tries: a `Range`, values, or a function that gives values for a model; None: the default
            alone.
    """
    metadata = {"kind": kind, "help": help, "choices": tuple(choices), "search": search}
    return field(default=default, metadata=metadata)


def flag(name: str) -> str:
    """A field's name as flags and files spell it."""
    return name.replace("_", "-")


def declared(kind: type) -> bool:
    """Whether a class is a dataclass whose fields were all made by `setting`."""
    if not is_dataclass(kind):
        return False
    return all({"kind", "help", "choices"} <= f.metadata.keys() and f.metadata["kind"] in KINDS for f in fields(kind))


def make(editor: Any, given: Mapping[str, Any]) -> Any:
    """An editor's settings from what was given by hand; None counts as not given.

    Raises:
        BadInput: The editor has no such setting, a value is of the wrong type or no word of its choices.
    """
    known = {f.name: f for f in fields(editor.Settings)}
    chosen = {name.replace("-", "_"): value for name, value in given.items() if value is not None}
    for name in chosen:
        if name not in known:
            there = ", ".join(map(flag, known)) or "none"
            raise BadInput(f"--{flag(name)}: the method {editor.name} has no such setting; it has {there}")
    settings = editor.Settings(**{name: _typed(known[name], value) for name, value in chosen.items()})
    editor.check(settings)
    return settings


def _typed(declared: Field[Any], value: Any) -> Any:
    """A value, or its text, as the field's type."""
    kind, choices = declared.metadata["kind"], declared.metadata["choices"]
    where = f"--{flag(declared.name)} {value!r}"
    if choices and value not in choices:
        raise BadInput(f"{where}: expected one of {', '.join(choices)}")
    try:
        made = _read(kind, value)
    except (TypeError, ValueError, OverflowError):
        expected = "true or false" if kind is bool else kind.__name__
        raise BadInput(f"{where}: expected {expected}") from None
    if kind is float and not math.isfinite(made):
        raise BadInput(f"{where}: expected a finite number")
    return made


def _read(kind: type, value: Any) -> Any:
    """A value of a kind, from such a value or its text. Raises TypeError, ValueError or OverflowError."""
    if kind is bool and value in ("true", "false"):
        return value == "true"
    if kind is str and isinstance(value, list | tuple):
        return ",".join(map(str, value))  # of layers
    if not isinstance(value, KINDS[kind]) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(value)
    return kind(value)


def spelt(texts: Iterable[str], kinds: Iterable[type]) -> dict[str, str]:
    """``KEY=VALUE``, and words that are a choice of some field, by the field's name.

    Raises:
        BadInput: A text that is neither.
    """
    words = {word: f.name for kind in kinds for f in fields(kind) for word in f.metadata["choices"]}
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if equals and key.strip():
            found[key.strip().replace("-", "_")] = value.strip()
        elif text in words:
            found[words[text]] = text
        else:
            raise BadInput(f"{text!r}: expected NAME=VALUE" + (f", or one of {', '.join(words)}" if words else ""))
    return found
