"""Running the program: signals, errors as one line, exit codes."""

from __future__ import annotations

import signal
import sys
import traceback
from typing import Any

import click

from ..errors import ResourceFault, UwmError


def launch(command: click.Group, arguments: list[str]) -> None:
    """Run a verb of the program and leave with its exit code."""
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _stop)
    sys.exit(_exit_code(command, arguments))


def _stop(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


def _exit_code(command: click.Group, arguments: list[str]) -> int:
    try:
        command.main(arguments or ["--help"], prog_name="uwm", standalone_mode=False)
    except UwmError as error:
        return _fail(error, arguments)
    except click.exceptions.Abort:
        click.echo("uwm: interrupted; nothing was left half-written", err=True)
        return 130
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" Try '{context.command_path} --help' for help." if context is not None else ""
        click.echo(f"uwm: error: {error.format_message()}{hint}", err=True)
        return error.exit_code
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "out of memory" not in str(error):
            raise
        return _fail(ResourceFault("out of memory; try a smaller --batch-size, or --device cpu"), arguments)
    except OSError as error:
        return _fail(ResourceFault(f"{error.filename or 'the system'}: {error.strerror or error}"), arguments)
    return 0


def _fail(error: UwmError, arguments: list[str]) -> int:
    if "--debug" in arguments:
        traceback.print_exception(error)
    click.echo(f"uwm: error: {error}", err=True)
    return error.exit_code
