"""The images of a job that opens several models: checked once, and read once where the models take them alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from ..calibration import CalibrationSet, Preservation
from ..models import Model
from ..models.kept import Kept
from .reading import refuse_bad_images

PROBES = ((64, 64), (331, 97), (150, 400))  # sizes of images by which two preprocessors are compared


class SharedImages:
    """Images that the models of a job keep together; the first model that is given them checks them all.

    Args:
        sets, preserve, workers: As in `refuse_bad_images`.
    """

    def __init__(self, sets: Sequence[CalibrationSet], workers: int, preserve: Preservation | None = None) -> None:
        self._sets, self._workers, self._preserve = [*sets], workers, preserve
        self._first: tuple[Kept, list[torch.Tensor]] | None = None

    def give(self, model: Model) -> Model:
        """Let a model keep its work, and share the images with the first one if it prepares them as that one does.

        Raises:
            BadInput: Images that cannot be read, all of them at once.
        """
        if self._first is None:
            model.kept = Kept()
            refuse_bad_images(self._sets, self._workers, self._preserve, model)
            self._first = model.kept, _prepared(model)
            return model
        kept, prepared = self._first
        own = _prepared(model)
        alike = len(own) == len(prepared) and all(a.equal(b) for a, b in zip(own, prepared, strict=True))
        model.kept = kept.beside() if alike else Kept()
        return model


def _prepared(model: Model) -> list[torch.Tensor]:
    """Images of noise of several sizes as a model takes them; none where it takes no images."""
    if "vision" not in model.modalities:
        return []
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in PROBES]
    return [model.preprocess([Image.fromarray(pixels)]) for pixels in noise]
