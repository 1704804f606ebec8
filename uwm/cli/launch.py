"""Running the program: signals, errors as one line, exit codes."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from typing import Any

import click

from ..clock import reuse_freed_memory
from ..errors import ResourceFault, UwmError
from ..escaping import CleanLines, clean, one_line, terminal
from ..processes import ProcessLost, is_first, several
from ..processes.ending import INTERRUPTED, Ending, is_one_of_several, together

SHARED = ("edit", "demo", "tune", "score", "eval", "compare", "finetune")  # verbs that several processes share


def launch(command: click.Group, arguments: list[str]) -> None:
    """Run a verb of the program and leave with its exit code."""
    reuse_freed_memory(os.environ)
    if logging.lastResort is not None:  # what shows warnings where nobody has set logging up
        logging.lastResort.setFormatter(CleanLines())
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _stop)
    if is_one_of_several(os.environ):
        signal.signal(signal.SIGINT, _interrupt)
        together(lambda: _shared_ending(command, arguments), os.environ)
    ending = _ending(command, arguments)
    if ending.text:
        click.echo(ending.text, err=True)
    sys.exit(ending.code)


def _stop(number: int, frame: Any) -> None:
    if several():
        signal.signal(number, signal.SIG_IGN)  # torchrun may send another one, in the middle of cleaning up
    raise SystemExit(128 + number)


def _interrupt(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_IGN)  # the terminal and torchrun both send it
    raise KeyboardInterrupt


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
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "out of memory" not in str(error):
            raise
        return _failed(ResourceFault("out of memory; try a smaller --batch-size, or --device cpu"), arguments)
    except OSError as error:
        return _failed(ResourceFault(f"{error.filename or 'the system'}: {error.strerror or error}"), arguments)
    return Ending(0)


def _failed(error: UwmError, arguments: list[str]) -> Ending:
    if isinstance(error, ProcessLost):
        raise error
    if "--debug" in arguments:
        click.echo(terminal("".join(traceback.format_exception(error))), err=True)
    return Ending(error.exit_code, f"uwm: error: {clean(str(error))}")
