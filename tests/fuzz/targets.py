"""What a fuzzer draws and checks: one input, its outcome, and what counts as a finding."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from uwm.errors import BadInput, Refused, UwmError
from uwm.escaping import error_text

MOST_SECONDS = 20  # of the processor's time for one input; the slowest honest one, of 64 megapixels, takes a few
EXECUTION = {"exec", "compile", "import", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen"}
EXECUTION |= {"pickle.find_class", "ctypes.dlopen", "marshal.loads", "code.__new__", "socket.connect"}


class Finding(AssertionError):
    """An outcome that should not be."""


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
        name: Of the kind.
        share: Of the time of a long run.
        draw: A source of draws -> the bytes of an input.
        check: Reads them and returns whether they were taken; raises where the outcome should not be.
    """

    name: str
    share: float
    draw: Callable[[random.Random], bytes]
    check: Callable[[bytes], bool]


def refusal(error: UwmError) -> str:
    """The message of a refusal. Raises Finding where it is none, or not one line for the terminal."""
    text = error_text(error)
    if not isinstance(error, BadInput | Refused) or not text or not text.isprintable():
        raise Finding(f"no refusal of an input: {type(error).__name__}: {text!r}")
    return text


def explained(text: str, reasons: dict[str, str]) -> bool:
    """Whether a message is of one of the listed classes: pattern -> why that is right."""
    return any(re.search(pattern, text, re.DOTALL) for pattern in reasons)


# ---------------------------------------------------------------- nothing runs, nothing hangs

_watching: list[str] | None = None


def _hook(event: str, arguments: tuple) -> None:
    if _watching is not None and event in EXECUTION:
        _watching.append(f"{event} {arguments[:1]}")


@contextlib.contextmanager
def nothing_runs() -> Iterator[None]:
    """Raise Finding where code is run, imported or compiled meanwhile, or a process is started."""
    global _watching  # noqa: PLW0603 - a hook of Python's cannot be taken away again, so there is one
    if not getattr(sys, "_uwm_fuzz_hook", False):
        sys.addaudithook(_hook)
        sys._uwm_fuzz_hook = True  # type: ignore[attr-defined]
    _watching = seen = []
    try:
        yield
    finally:
        _watching = None
    if seen:
        raise Finding(f"something ran: {seen[:3]}")


def _too_slow(number: int, frame: object) -> None:
    raise Finding(f"took more than {MOST_SECONDS} s")


def attempt(target: Target, data: bytes) -> bool:
    """Check one input within a time, with Python's warnings as errors; whether it was taken."""
    before = signal.signal(signal.SIGPROF, _too_slow)
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return target.check(data)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
