"""The trackers of uwm's own, each through its library: trackio, Weights & Biases, TensorBoard.

They write on this machine unless the library's own variables say otherwise: ``TRACKIO_SPACE_ID``,
``WANDB_MODE=online``. Settings, figures and the verdict are all that goes to them: no captions, no images, no paths.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

from ..errors import BadInput
from .trackers import PROJECT, Recording, Run

RUNS = "runs"  # where TensorBoard looks by convention, in the current folder


def _library(tracker: str, module: str) -> Any:
    """The module of a library. Raises BadInput, with the extra that installs it."""
    try:
        return import_module(module)
    except ImportError as error:
        reason = f"{error}".splitlines()[0]
        raise BadInput(f"--track {tracker}: cannot be imported ({reason}); pip install 'uwm[{tracker}]'") from None


class _Trackio:
    """Local-first, in a SQLite file of Hugging Face's cache (``TRACKIO_DIR``); `trackio show` shows it."""

    name = "trackio"

    def check(self) -> None:
        """As `Tracker.check`."""
        _library(self.name, "trackio")

    def start(self, run: Run) -> Recording:
        """As `Tracker.start`."""
        trackio = _library(self.name, "trackio")
        with _silenced():
            begun = trackio.init(
                project=PROJECT, name=run.name, config=dict(run.settings), embed=False, auto_log_gpu=False,
                auto_log_cpu=False,
            )  # fmt: skip
        return _TrackioRun(trackio, begun)


class _TrackioRun:
    def __init__(self, library: Any, run: Any) -> None:
        self._library, self._run = library, run

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def finish(self, figures: Mapping[str, float], texts: Mapping[str, str], failed: bool) -> None:
        with _silenced():
            self._run.log({**figures, **texts, "state": "failed" if failed else "finished"})
            self._library.finish()


class _WandB:
    """Weights & Biases, offline unless ``WANDB_MODE`` says otherwise; `wandb sync wandb/offline-run-…` uploads it."""

    name = "wandb"

    def check(self) -> None:
        """As `Tracker.check`."""
        _library(self.name, "wandb")

    def start(self, run: Run) -> Recording:
        """As `Tracker.start`."""
        wandb = _library(self.name, "wandb")
        wanted = {
            "mode": os.environ.get("WANDB_MODE", "offline"),
            "silent": True,
            "console": "off",
            "disable_git": True,
            "disable_code": True,
            "save_code": False,
            "program": PROJECT,
            "program_relpath": PROJECT,
            "host": "",
            "x_disable_meta": True,
            "x_disable_stats": True,
            "x_disable_machine_info": True,
            "x_save_requirements": False,
        }
        known = wandb.Settings.model_fields  # names of settings differ between versions
        settings = wandb.Settings(**{name: value for name, value in wanted.items() if name in known})
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        return _WandBRun(wandb.init(project=project, name=run.name, config=dict(run.settings), settings=settings))


class _WandBRun:
    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def finish(self, figures: Mapping[str, float], texts: Mapping[str, str], failed: bool) -> None:
        self._run.summary.update({**figures, **texts})
        self._run.finish(exit_code=int(failed))


class _TensorBoard:
    """Event files in ``runs/`` of the current folder; `tensorboard --logdir runs` shows them."""

    name = "tensorboard"

    def check(self) -> None:
        """As `Tracker.check`."""
        _library(self.name, "tensorboard.compat.proto.event_pb2")

    def start(self, run: Run) -> Recording:
        """As `Tracker.start`."""
        writer = _library(self.name, "torch.utils.tensorboard").SummaryWriter(str(_place(run.name)))
        writer.add_text("settings", f"```\n{json.dumps(run.settings, indent=1, ensure_ascii=False)}\n```")
        return _TensorBoardRun(writer)


class _TensorBoardRun:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, figures: Mapping[str, float], texts: Mapping[str, str], failed: bool) -> None:
        self.log(0, figures)
        for name, text in {**texts, "state": "failed" if failed else "finished"}.items():
            self._writer.add_text(name, text)
        self._writer.close()


def _place(name: str) -> Path:
    """A new folder for a run, numbered from the second on."""
    part = re.sub(r"[^\w.-]+", "-", name).strip("-.")
    number = 1
    while (place := Path(RUNS) / (part if number == 1 else f"{part}-{number}")).exists():
        number += 1
    return place


@contextmanager
def _silenced() -> Iterator[None]:
    """Without what a library prints: stdout is the program's."""
    with redirect_stdout(StringIO()):
        yield


TRACKIO, WANDB, TENSORBOARD = _Trackio(), _WandB(), _TensorBoard()
