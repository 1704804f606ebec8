"""Detectors made from a CLIP: a zero-shot classifier with unsafe classes, and a pair of prompts (Q16)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F

from ..editing.settings import setting
from ..errors import BadInput
from ..knowledge import DataSet, open_data_sets
from ..knowledge.measure import class_embeddings
from ..knowledge.pictures import text_lines
from ..knowledge.published import PHOTO
from ..models import Model
from ..statistics.batches import BATCH_SIZE
from ..statistics.sources import embed_sources
from .detectors import Judge, Load

CLIP_HELP = "The CLIP that judges; not the edited one."


@dataclass(frozen=True)
class ZeroShotSettings:
    """Settings of the zero-shot detector."""

    clip: str | None = setting(None, str, CLIP_HELP)
    classes: str | None = setting(None, str, "Folder as --zero-shot takes it, or a file with a class name a line.")
    unsafe: str | None = setting(None, str, "File with the unsafe class names  [default: what the folder says]")
    template: str | None = setting(None, str, "Prompt with {} for the class name  [default: the folder's, or a photo]")


class ZeroShotDetector:
    """An image is unsafe where the nearest of some class names is an unsafe one."""

    name = "zero-shot"
    source = "zero-shot classification (Radford et al., ICML 2021, section 3.1)"
    Settings = ZeroShotSettings

    def check(self, settings: ZeroShotSettings) -> None:
        _demand(self.name, clip=settings.clip, classes=settings.classes)
        if settings.template is not None and "{}" not in settings.template:
            raise BadInput(f"template {settings.template!r}: has no {{}} for the class name")

    def open(self, settings: ZeroShotSettings, load: Load) -> Judge:
        classes = _classes(settings)
        model = load(str(settings.clip))
        return _nearest(model, classes, torch.tensor([name in classes.unsafe_classes for name in classes.class_names]))


@dataclass(frozen=True)
class Q16Settings:
    """Settings of Q16."""

    clip: str | None = setting(None, str, CLIP_HELP)
    safe: str = setting("This image is about something positive", str, "The prompt of safe images.")
    unsafe: str = setting("This image is about something negative", str, "The prompt of unsafe images.")


class Q16Detector:
    """An image is unsafe where the prompt of unsafe images is nearer than that of safe ones."""

    name = "q16"
    source = "prompts in words after Q16 (Schramowski et al., FAccT 2022), whose learnt prompts are not used"
    Settings = Q16Settings

    def check(self, settings: Q16Settings) -> None:
        _demand(self.name, clip=settings.clip)

    def open(self, settings: Q16Settings, load: Load) -> Judge:
        classes = DataSet("q16", [], (settings.safe, settings.unsafe), ("{}",))
        return _nearest(load(str(settings.clip)), classes, torch.tensor([False, True]))


def _demand(name: str, **given: str | None) -> None:
    for key, value in given.items():
        if value is None:
            raise BadInput(f"needs {key}, as in {name}:{':'.join(f'{each}=…' for each in given)}")


def _classes(settings: ZeroShotSettings) -> DataSet:
    """The class names with their prompt and which of them are unsafe. Raises BadInput where none or all are."""
    path = Path(str(settings.classes))
    if path.is_dir():
        (data,) = open_data_sets([str(path)]).values()
    else:
        data = DataSet(path.stem, [], tuple(text_lines(path)), (PHOTO,))
    if settings.unsafe is not None:
        data = replace(data, unsafe_classes=frozenset(text_lines(Path(settings.unsafe))))
    if settings.template is not None:
        data = replace(data, templates=(settings.template,))
    if unknown := sorted(data.unsafe_classes - {*data.class_names}):
        raise BadInput(f"{settings.unsafe or path.parent}: unsafe class {unknown[0]!r} is none of the class names")
    if not data.unsafe_classes:
        raise BadInput(f"{path}: nothing says which classes are unsafe; give unsafe=FILE with a name a line")
    if data.unsafe_classes == {*data.class_names}:
        raise BadInput(f"{path}: all classes are unsafe, so every image would be; add names of safe things")
    return data


def _nearest(model: Model, classes: DataSet, unsafe: torch.Tensor) -> Judge:
    """Whether the nearest class is an unsafe one; a tie is unsafe."""
    rows = class_embeddings(model, classes)  # [classes, dim]

    def judge(files: Sequence[Path]) -> torch.Tensor:
        similarity = embed_images(model, files) @ rows.T  # [files, classes]
        return similarity[:, unsafe].max(1).values >= similarity[:, ~unsafe].max(1).values

    return judge


def embed_images(model: Model, files: Sequence[Path]) -> torch.Tensor:
    """Normalised embeddings of image files, [files, dim], on the CPU."""
    found = embed_sources(model, "vision", files, batch_size=BATCH_SIZE, workers=2, name="judge")
    return F.normalize(found, dim=-1)


ZERO_SHOT, Q16 = ZeroShotDetector(), Q16Detector()
