"""Everything that a job reads before it loads a model."""

from __future__ import annotations

from dataclasses import dataclass

from ..calibration import CalibrationSet, Preservation, read_preservation
from ..knowledge import DataSet
from ..models import Model
from .describing import Checked, check_sets
from .reading import Inputs, read_data_sets, read_sets, refuse_bad_images


@dataclass(frozen=True)
class Sets:
    """What a job learns from and what it measures on.

    Attributes:
        calibration, preserve: To learn from.
        held_out, data_sets: To measure on, by name.
        checked: What was found out about them.
    """

    calibration: CalibrationSet
    preserve: Preservation | None
    held_out: dict[str, CalibrationSet]
    data_sets: dict[str, DataSet]
    checked: Checked

    def check_images(self, model: Model, workers: int) -> None:
        """Refuse images that cannot be read; the model keeps what it can of the others. Raises BadInput."""
        refuse_bad_images([self.calibration, *self.held_out.values()], workers, self.preserve, model)


def read_all(inputs: Inputs, preserve: str | None) -> Sets:
    """Read the sets of a job; images are looked at when there is a model, see `Sets.check_images`.

    Args:
        inputs: What to read.
        preserve: As in `uwm.calibration.read_preservation`; None for none.

    Raises:
        UwmError: Of every kind.
    """
    calibration, held_out = read_sets(inputs)
    kept = None if preserve is None else read_preservation(preserve)
    data_sets = read_data_sets(inputs)
    checked = check_sets(inputs, calibration, held_out, data_sets, preserve=kept)
    return Sets(calibration, kept, held_out, data_sets, checked)
