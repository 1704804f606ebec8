"""Running the program: signals, errors as one line, exit codes."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import traceback
from contextlib import suppress
from typing import Any

import click

from ..clock import reuse_freed_memory
from ..errors import INTERRUPTED, ResourceFault, UwmError
from ..escaping import CleanLines, error_text, one_line, terminal
from ..processes import ProcessLost, is_first
from ..processes.ending import Ending, is_one_of_several, together

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # that end a program
NO_MEMORY = ("out of memory", "allocate memory", "bad_alloc", "can't start new thread", "failed to map segment")
PRINTERS = ("click", "rich")  # the libraries that write to stdout
_deaf: set[int] = set()  # the signals that are ignored because one of them has come
SHARED = ("edit", "demo", "tune", "score", "eval", "compare", "finetune")  # verbs that several processes share


def launch(command: click.Group, arguments: list[str]) -> None:
    """Run a verb of the program and leave with its exit code."""
    reuse_freed_memory(os.environ)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what the terminal's encoding has not, and bytes of names
            stream.reconfigure(errors="backslashreplace")
    if logging.lastResort is not None:  # what shows warnings where nobody has set logging up
        logging.lastResort.setFormatter(CleanLines())
    shared = is_one_of_several(os.environ)
    _listen(shared)
    if shared:
        together(lambda: _shared_ending(command, arguments), os.environ)
    sys.exit(_told(_ending(command, arguments)).code)


def _listen(shared: bool) -> None:
    """End in order at the first signal that ends programs; one that is ignored, as by nohup, stays so."""
    for name in SIGNALS:
        number = getattr(signal, name, None)
        if number is None or (signal.getsignal(number) is signal.SIG_IGN and number not in _deaf and not shared):
            continue
        signal.signal(number, _interrupt if name == "SIGINT" else _stop)
    _deaf.clear()


def _turn_deaf() -> None:
    """Hear no further signal in the middle of cleaning up: terminals, torchrun and users send a second one."""
    for name in SIGNALS:
        if (number := getattr(signal, name, None)) is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_IGN)
            _deaf.add(number)


def _stop(number: int, frame: Any) -> None:
    _turn_deaf()
    raise SystemExit(128 + number)


def _interrupt(number: int, frame: Any) -> None:
    _turn_deaf()
    raise KeyboardInterrupt


def _told(ending: Ending) -> Ending:
    """Tell how it ended. What could not be written to stdout, such as to a full device, is an error of its own."""
    if fault := _stdout_fault():
        ending = ending if ending.code else Ending(ResourceFault.exit_code, f"uwm: error: stdout: {fault}")
    if ending.text:
        with suppress(OSError):
            click.echo(ending.text, err=True)
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
    """The same in a group, where only the first process runs a verb that is not shared."""
    shared = is_first() or bool({*arguments[:1]} & {*SHARED})
    return _ending(command, arguments) if shared else Ending(0)


def _ending(command: click.Group, arguments: list[str]) -> Ending:
    """Run a verb; how it ended."""
    try:
        command.main(arguments or ["--help"], prog_name="uwm", standalone_mode=False, obj=arguments)
    except UwmError as error:
        return _failed(error, arguments)
    except click.exceptions.Abort:
        return Ending(130, INTERRUPTED)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" Try '{context.command_path} --help' for help." if context is not None else ""
        return Ending(error.exit_code, f"uwm: error: {one_line(error.format_message())}{hint}")
    except (MemoryError, RuntimeError, ImportError, OSError) as error:
        return _failed(_fault_of(error), arguments)
    return Ending(0)


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
    return Ending(error.exit_code, f"uwm: error: {error_text(error)}")
