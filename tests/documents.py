"""The Markdown of README and guides: blocks, commands, inline code and links, and what `uwm` would make of them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from uwm.cli import uwm

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = (README, *sorted((ROOT / "examples" / "guides").glob("*.md")))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
OUTPUT = re.compile(r"^(DONE|PASS|FAIL) ")  # a block that shows what a command prints


@dataclass(frozen=True)
class Command:
    """One command of a block.

    Attributes:
        words: The program and its arguments.
        environment: Variables that are set for it.
    """

    words: tuple[str, ...]
    environment: Mapping[str, str]

    @property
    def arguments(self) -> list[str] | None:
        """What is given to uwm, however it is started; None for another program."""
        names = [Path(word).name for word in self.words]
        if "_UWM_COMPLETE" in self.environment:
            return None
        if names[0] == "uwm":
            return list(self.words[1:])
        if "-m" in names and names[names.index("-m") + 1] == "uwm":
            return list(self.words[names.index("-m") + 2 :])
        return None

    def __str__(self) -> str:
        return shlex.join(self.words)


def blocks(text: str, language: str = "") -> list[str]:
    """The code blocks of one language; of no language those that are commands."""
    found = [body for kind, body in BLOCK.findall(text) if kind == language]
    return [body for body in found if not OUTPUT.match(body) and not body.startswith("{")]


def commands(text: str) -> list[Command]:
    """The commands of all blocks, in order; lines of a shell's settings are commands too."""
    found = []
    for block in blocks(text):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split(" && "):
                words = shlex.split(re.sub(r"\$\(.*?\)", "SHELL", part), comments=True)
                count = next((i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)), len(words))
                if words[count:]:
                    given = dict(word.split("=", 1) for word in words[:count])
                    found.append(Command(tuple(words[count:]), given))
    return found


def prose(text: str) -> str:
    """The text without its blocks, each paragraph on one line."""
    return re.sub(r"(?<!\n)\n(?![\n|#-])", " ", BLOCK.sub("", text))


def spans(text: str) -> list[str]:
    """All inline code."""
    return re.findall(r"`([^`\n]+)`", prose(text))


def links(text: str) -> Iterator[tuple[str, str]]:
    """Path and anchor of every relative link and image."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            yield path, anchor


def anchors(text: str) -> set[str]:
    """The anchors of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def parsed(arguments: list[str]) -> dict[str, Any]:
    """Parameter -> value of a command, as click reads it; nothing is run, no file is looked for.

    Raises:
        click.ClickException: There is no such verb or flag, a value is not legal, or something needed is not given.
    """
    if arguments[0] in ("--help", "--version", "-h"):
        return {}
    program = click.Context(uwm, info_name="uwm", **uwm.context_settings)
    name, verb, rest = uwm.resolve_command(program, arguments)
    assert verb is not None
    context = click.Context(verb, parent=program, info_name=name, **verb.context_settings)
    given, left, _ = verb.make_parser(context).parse_args(list(rest))
    if left:
        raise click.UsageError(f"unexpected arguments {left}")
    found = {}
    for parameter in verb.params:
        value = given.get(parameter.name)
        if value is None or value == () or type(value).__name__ == "Sentinel":
            if parameter.required and "--help" not in rest:
                raise click.MissingParameter(ctx=context, param=parameter)
        else:
            found[parameter.name] = parameter.type_cast_value(context, value)
    return found


def flags_of(verb: str | None = None) -> set[str]:
    """The long and short flags of a verb, or of all."""
    verbs = uwm.commands.values() if verb is None else [uwm.commands[verb]]
    found = {flag for command in verbs for p in command.params for flag in (*p.opts, *p.secondary_opts)}
    return {flag for flag in found if flag.startswith("-")} | {"--help", "-h", "--version"}
