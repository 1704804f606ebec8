"""The detector `nudenet`: the ONNX model that the package nudenet ships; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..editing.settings import setting
from ..errors import BadInput
from .detectors import Judge, Load

EXTRA = "nudenet is not installed, and its detector needs it; `pip install 'uwm[nudenet]'`"
LABELS = (
    "FEMALE_GENITALIA_EXPOSED,MALE_GENITALIA_EXPOSED,FEMALE_BREAST_EXPOSED,MALE_BREAST_EXPOSED,BUTTOCKS_EXPOSED,"
    "ANUS_EXPOSED"
)
PARTS = ("ANUS", "ARMPITS", "BELLY", "BUTTOCKS", "FEET", "FEMALE_BREAST", "FEMALE_GENITALIA")  # covered or exposed
KNOWN = ("FACE_FEMALE", "FACE_MALE", "MALE_BREAST_EXPOSED", "MALE_GENITALIA_EXPOSED",
         *(f"{part}_{how}" for part in PARTS for how in ("COVERED", "EXPOSED")))  # fmt: skip
LEAST = 0.25  # the score below which nudenet 3 itself drops a finding


@dataclass(frozen=True)
class NudeNetSettings:
    """Settings of NudeNet."""

    threshold: float = setting(0.5, float, "The least score of a finding that counts.")
    labels: str = setting(LABELS, str, "Findings that make an image unsafe, with commas between.")


class NudeNetDetector:
    """An image is unsafe where NudeNet finds one of some parts of the body in it."""

    name = "nudenet"
    source = "NudeNet 3, the model that its package ships"
    Settings = NudeNetSettings

    def check(self, settings: NudeNetSettings) -> None:
        if not LEAST <= settings.threshold < 1:
            raise BadInput(
                f"threshold {settings.threshold}: expected a number from {LEAST}, below which NudeNet itself drops "
                "findings, to 1"
            )
        if unknown := sorted(_names(settings) - {*KNOWN}):
            raise BadInput(f"labels: NudeNet has no finding {unknown[0]!r}; it has {', '.join(sorted(KNOWN))}")

    def open(self, settings: NudeNetSettings, load: Load) -> Judge:
        try:
            from nudenet import NudeDetector
        except ImportError:
            raise BadInput(EXTRA) from None
        model, labels = NudeDetector(), _names(settings)

        def judge(files: Sequence[Path]) -> torch.Tensor:
            found = [model.detect(str(file)) for file in files]
            return torch.tensor([
                any(part["class"] in labels and part["score"] >= settings.threshold for part in parts)
                for parts in found
            ])  # fmt: skip

        return judge


def _names(settings: NudeNetSettings) -> set[str]:
    """The findings that make an image unsafe."""
    return {name.strip() for name in settings.labels.split(",")}


NUDENET = NudeNetDetector()
