"""What a detector of unsafe images is, and which are installed (entry points ``uwm.detectors``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from .. import plugins
from ..editing import settings
from ..errors import BadInput
from ..models import Model

GROUP = "uwm.detectors"
Load = Callable[[str], Model]  # opens a CLIP, as `uwm.load` does
Judge = Callable[[Sequence[Path]], torch.Tensor]  # of image files: whether each is unsafe, bool [files]


class Detector(Protocol):
    """Calls images unsafe. A distribution of your own registers one by an entry point in ``uwm.detectors``."""

    @property
    def name(self) -> str:
        """As in ``--detector``; the entry point's name is the same."""

    @property
    def source(self) -> str:
        """The paper or the package."""

    @property
    def Settings(self) -> type:
        """A frozen dataclass with fields made by `uwm.editing.settings.setting`."""

    def check(self, settings: Any) -> None:
        """Refuse settings that cannot work, before anything is read. Raises UwmError."""

    def open(self, settings: Any, load: Load) -> Judge:
        """What judges image files. Raises BadInput where something that it needs is not there."""


@dataclass(frozen=True)
class Asked:
    """A detector that was asked for.

    Attributes:
        text: As it was written.
        detector, settings: What it stands for.
    """

    text: str
    detector: Detector
    settings: Any

    @property
    def words(self) -> str:
        """For reports: its settings by name, of paths the last part."""
        given = vars(self.settings).items()
        told = [f"{name} {Path(value).name if isinstance(value, str) else value}" for name, value in given if value]
        return f"{self.detector.source}" + (f"; {', '.join(told)}" if told else "")


def find_detectors() -> Mapping[str, Detector]:
    """Name -> detector, sorted, of every distribution with entry points in the group ``uwm.detectors``.

    Raises:
        BadInput: On getting a detector: two have its name, or it cannot be imported or is no detector. A detector that
            nobody gets is not imported.
    """
    return plugins.Installed(GROUP, "detector", _lack)


def parse_detectors(texts: Sequence[str]) -> dict[str, Asked]:
    """Detectors as ``--detector`` names them: ``NAME``, or ``NAME:KEY=VALUE:KEY=VALUE``.

    Returns:
        What figures call each -> the detector; a second one of a name has a number behind it.

    Raises:
        BadInput: An unknown name or setting.
    """
    known, asked = find_detectors(), dict[str, Asked]()
    for text in texts:
        name, *parts = text.split(":")
        if not known:
            raise BadInput(
                "no detectors are registered, not even ours; install uwm again with pip, which registers them"
            )
        if name not in known:
            raise BadInput(f"--detector {name!r}: expected one of {', '.join(known)}")
        detector = known[name]
        try:
            chosen = settings.make(detector, settings.spelt(_joined(parts), []))
        except BadInput as error:
            raise BadInput(f"--detector {text}: {error}") from None
        plain = name.replace("-", "_")
        count = sum(other.detector.name == name for other in asked.values())
        asked[plain if not count else f"{plain}_{count + 1}"] = Asked(text, detector, chosen)
    return asked


def _joined(parts: Sequence[str]) -> list[str]:
    """``KEY=VALUE`` each; a colon within a value, as in hf-hub:ORG/NAME, is its own."""
    found: list[str] = []
    for part in parts:
        if "=" in part or not found:
            found.append(part)
        else:
            found[-1] += f":{part}"
    return found


def _lack(detector: Any) -> str | None:
    """What an object lacks to be a detector."""
    for part in ("name", "source"):
        if not isinstance(getattr(detector, part, None), str):
            return f"expected an attribute {part!r}, a str; see uwm.readers.detectors.Detector"
    if not isinstance(getattr(detector, "Settings", None), type) or not settings.declared(detector.Settings):
        return "expected 'Settings', a dataclass of fields that uwm.editing.settings.setting makes"
    missing = [name for name in ("check", "open") if not callable(getattr(detector, name, None))]
    return f"expected a method {missing[0]!r}; see uwm.readers.detectors.Detector" if missing else None
