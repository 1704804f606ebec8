"""What a verb is doing, on stderr: one bar with the time that is left, or lines where there is no terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import click

from ..processes import is_first

Item = TypeVar("Item")

SHOWS = {"edit", "demo", "score", "eval", "finetune", "tune", "compare", "try", "calib-check"}  # that take their time
LOADING = "loading uwm and torch"
EVERY = 30.0  # seconds: a stage without a terminal says how far it is
FORMAT = "{desc} {percentage:3.0f} %|{bar}| {elapsed} < {remaining}"


def begin(context: click.Context) -> None:
    """Say at once that a verb has begun, before the libraries are loaded that take seconds."""
    if context.info_name not in SHOWS or not is_first() or _is_off(context.params):
        return
    shown = Lines() if context.params.get("verbose") or not sys.stderr.isatty() else Bar()
    context.meta[__name__] = shown
    context.call_on_close(shown.close)
    shown.loading()


def progress_of(show: Mapping[str, bool]) -> Callable | None:
    """What shows the progress of the verb that is running; None where nothing is to be shown."""
    return None if _is_off(show) else click.get_current_context().meta.get(__name__)


def _is_off(show: Mapping[str, Any]) -> bool:
    asked = os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS", "").upper() in ("1", "ON", "YES", "TRUE")
    return bool(asked or show.get("quiet") or show.get("no_progress"))


class Stages:
    """How far a run is: the sum of what its stages are expected to take (see `uwm.stages.Staged`).

    Before a plan is told, each wrapped iterable is a stage.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._plan: dict[str, float] = {}
        self._past: list[str] = []  # stages that are done
        self._now, self._steps, self._step = "", 1, 0

    def plan(self, stages: Mapping[str, float]) -> None:
        """It may be told anew, when more is known; stages that are done stay so."""
        self._plan = {**stages}

    def stage(self, name: str, steps: int) -> None:
        self._past += [self._now] if self._now else []
        self._now, self._steps, self._step = name, max(steps, 1), 0
        self._show(name, 0.0)

    def note(self, text: str) -> None:
        """Above the bar, or on a line of its own."""
        from tqdm import tqdm

        with tqdm.external_write_mode(file=sys.stderr):
            click.echo(f"uwm: {text}", err=True)

    def finish(self) -> None:
        self.close()

    def __call__(self, items: Iterable[Item], total: int, name: str) -> Iterator[Item]:
        if not self._plan:
            self._now, self._steps, self._step = name, 1, 0
            self._show(name, 0.0)
        for done, item in enumerate(items, 1):
            yield item
            self._show(self._named(name), min(done / max(total, 1), 1.0))
        self._step += 1
        if not self._plan:
            self.close()  # what is printed next is not about this

    def _named(self, name: str) -> str:
        return self._now if name == self._now else f"{self._now}: {name}"

    def _fraction(self, within: float) -> float:
        """Of the whole run, 0 to 1, where the current iterable is so far."""
        if not self._plan:
            return within
        share = min((self._step + within) / self._steps, 1.0) * self._plan.get(self._now, 0.0)
        past = sum(self._plan.get(name, 0.0) for name in self._past)
        return min((past + share) / sum(self._plan.values()), 1.0)

    def _show(self, name: str, within: float) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Take the bar away."""


class Bar(Stages):
    """One bar on a terminal, which goes again at the end."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Any = None
        self._written = ""  # before there is a bar

    def loading(self) -> None:
        """Before tqdm is there."""
        self._written = f"{LOADING} …"
        click.echo(f"{self._written}\r", err=True, nl=False)

    def _erase(self) -> None:
        if self._written:
            click.echo(f"{' ' * len(self._written)}\r", err=True, nl=False)
        self._written = ""

    def _show(self, name: str, within: float) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._erase()
            how: dict[str, Any] = {"bar_format": FORMAT, "smoothing": 0, "miniters": 0, "dynamic_ncols": True}
            self._bar = tqdm(total=1.0, desc=name, leave=False, file=sys.stderr, **how)
        self._bar.set_description_str(name, refresh=False)
        fraction = self._fraction(within)
        if fraction < self._bar.n:  # another iterable, without a plan
            self._bar.reset()
        self._bar.update(fraction - self._bar.n)
        if not within:
            self._bar.refresh()

    def close(self) -> None:
        self._erase()
        if self._bar is not None:
            self._bar.close()
        self._bar = None


class Lines(Stages):
    """A line a stage, and one now and then within long ones."""

    def __init__(self) -> None:
        super().__init__()
        self._last = self._began

    def loading(self) -> None:
        """The first line."""
        self._say(LOADING)

    def _show(self, name: str, within: float) -> None:
        if within and time.monotonic() - self._last < EVERY:
            return
        count = f" ({[*self._plan].index(self._now) + 1} of {len(self._plan)})" if self._now in self._plan else ""
        fraction = self._fraction(within)
        spent = time.monotonic() - self._began
        left = f", {100 * fraction:.0f} %, {_seconds(spent / fraction - spent)} left" if within and fraction else ""
        self._say(f"{name}{count}{left}")

    def _say(self, text: str) -> None:
        self._last = time.monotonic()
        click.echo(f"uwm: [{_seconds(self._last - self._began)}] {text}", err=True)


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min"
