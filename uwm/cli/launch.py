"""Running the program: signals, errors as one line, exit codes."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import click

from ..clock import reuse_freed_memory
from ..errors import INTERRUPTED, KEPT, ResourceFault, UwmError
from ..escaping import CleanLines, error_text, one_line, terminal
from ..processes import ProcessLost, is_first, joined
from ..processes.ending import Ending, is_one_of_several, together

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # that end a program
NO_MEMORY = ("out of memory", "allocate memory", "bad_alloc", "can't start new thread", "failed to map segment")
PRINTERS = ("click", "rich")  # the libraries that write to stdout
_deaf: set[int] = set()  # the signals that are ignored because one of them has come
_heard: list[int] = []  # that one
SHARED = ("edit", "demo", "tune", "score", "eval", "compare", "finetune")  # verbs that several processes share


def launch(command: click.Group, arguments: list[str]) -> None:
    """Run a verb of the program and leave with its exit code."""
    reuse_freed_memory(os.environ)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what the terminal's encoding has not, and bytes of names
            stream.reconfigure(errors="backslashreplace")
    if logging.lastResort is not None:  # what shows warnings where nobody has set logging up
        logging.lastResort.setFormatter(CleanLines())
    shared, way_on = is_one_of_several(os.environ), partial(_way_on, time.monotonic())
    _listen(shared)
    if shared:
        together(lambda: _shared_ending(command, arguments), os.environ, way_on)
    try:
        ending = _ending(command, arguments)
    except SystemExit as stop:
        _told(Ending(0, stopped=True), way_on)  # by a signal, which leaves with its own code
        raise stop
    sys.exit(_told(ending, way_on).code)


def _way_on(since: float) -> str:
    """What to say of work that a run begun since then has kept; empty where there is none."""
    unfinished = sys.modules.get("uwm.unfinished")  # nothing is kept where nobody has imported it
    return KEPT if unfinished is not None and unfinished.is_kept(since) else ""


def _listen(shared: bool) -> None:
    """End in order at the first signal that ends programs; one that is ignored, as by nohup, stays so."""
    for name in SIGNALS:
        number = getattr(signal, name, None)
        if number is None or (signal.getsignal(number) is signal.SIG_IGN and number not in _deaf and not shared):
            continue
        signal.signal(number, _interrupt if name == "SIGINT" else _stop)
    _deaf.clear()
    _heard.clear()


def _turn_deaf() -> None:
    """Hear no further signal in the middle of cleaning up: terminals, torchrun and users send a second one."""
    for name in SIGNALS:
        if (number := getattr(signal, name, None)) is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_IGN)
            _deaf.add(number)


def _stop(number: int, frame: Any) -> None:
    _turn_deaf()
    _heard.append(number)
    raise SystemExit(128 + number)


def _interrupt(number: int, frame: Any) -> None:
    _turn_deaf()
    _heard.append(number)
    raise KeyboardInterrupt


def _told(ending: Ending, way_on: Callable[[], str]) -> Ending:
    """Tell how it ended. What could not be written to stdout, such as to a full device, is an error of its own."""
    if fault := _stdout_fault():
        ending = ending if ending.code else Ending(ResourceFault.exit_code, f"uwm: error: stdout: {fault}")
    if text := ending.with_way_on(ending.text, way_on):
        with suppress(OSError):
            click.echo(text, err=True)
    return ending


def _stdout_fault() -> str:
    """Why stdout takes nothing; empty where it does. What it did not take is thrown away then."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        fault = ""  # whoever read it has enough
    except OSError as error:
        fault = error.strerror or str(error)
    else:
        return ""
    with suppress(OSError, ValueError):  # Python would flush it again at its end, and fail with its own code
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return fault


def _shared_ending(command: click.Group, arguments: list[str]) -> Ending:
    """The same in a group, where the first process by itself runs a verb that is not shared."""
    if {*arguments[:1]} & {*SHARED}:
        return _ending(command, arguments)
    if not is_first():
        return Ending(0)
    with joined(None):
        return _ending(command, arguments)


def _ending(command: click.Group, arguments: list[str]) -> Ending:
    """Run a verb; how it ended. Raises SystemExit for a signal other than Ctrl-C."""
    try:
        command.main(arguments or ["--help"], prog_name="uwm", standalone_mode=False, obj=arguments)
    except Exception as error:
        if not _heard:
            return _ending_by(error, arguments)
        if _heard[0] == signal.SIGINT:  # whatever error a library made of it: NumPy does while it compares
            return Ending(130, INTERRUPTED, stopped=True)
        raise SystemExit(128 + _heard[0]) from error
    return Ending(0)


def _ending_by(error: Exception, arguments: list[str]) -> Ending:
    """How a verb ended that raised an error. Raises it where it is a mistake of ours."""
    if isinstance(error, UwmError):
        return _failed(error, arguments)
    if isinstance(error, click.exceptions.Abort):
        return Ending(130, INTERRUPTED, stopped=True)
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        hint = f" Try '{context.command_path} --help' for help." if context is not None else ""
        return Ending(error.exit_code, f"uwm: error: {one_line(error.format_message())}{hint}")
    if not isinstance(error, MemoryError | RuntimeError | ImportError | OSError):
        raise error
    fault = _fault_of(error)
    fault.__cause__ = error
    return _failed(fault, arguments)


def _fault_of(error: Exception) -> ResourceFault:
    """What failed of the machine. Raises the error where nothing did."""
    if isinstance(error, MemoryError) or any(sign in str(error) for sign in NO_MEMORY):
        return ResourceFault("out of memory; try a smaller --batch-size, or --device cpu")
    if not isinstance(error, OSError):
        raise error
    place = error.filename or ("stdout" if _was_printing(error) else "the system")
    return ResourceFault(f"{place}: {error.strerror or error}")


def _was_printing(error: OSError) -> bool:
    """Whether it came of what prints; such an error names no file."""
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1].partition(".")[0] in PRINTERS


def _failed(error: UwmError, arguments: list[str]) -> Ending:
    if isinstance(error, ProcessLost):
        raise error
    if "--debug" in arguments:
        click.echo(terminal("".join(traceback.format_exception(error))), err=True)
    stopped = isinstance(error, ResourceFault) and isinstance(error.__cause__, OSError | MemoryError | RuntimeError)
    return Ending(error.exit_code, f"uwm: error: {error_text(error)}", stopped=stopped)
