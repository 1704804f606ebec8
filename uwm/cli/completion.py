"""What a shell offers after Tab."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click


def completed(values: Callable[[], Iterable[str]]) -> Callable:
    """What a shell offers for a flag: of these values those that begin as what was typed; after commas the next one."""

    def offer(context: click.Context, option: click.Parameter, typed: str) -> list[str]:
        before, comma, last = typed.rpartition(",")
        return [f"{before}{comma}{value}" for value in values() if value.startswith(last)]

    return offer
