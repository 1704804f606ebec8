"""Everything that decides a comparison."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..backends.protocol import Computing
from ..editing.entries.editor import TEXT_LAYERS, VISION_LAYERS
from ..editing.entries.selection import check_share
from ..errors import BadInput
from ..inputs import BARE, Inputs
from ..schema import LARGEST


@dataclass(frozen=True)
class CompareRecipe(Inputs):
    """The fields are the flags of `uwm compare`; those of `Inputs` mean the same.

    Attributes:
        methods: As in `uwm.comparison.methods.parse_methods`.
        seeds: Each method runs once a seed; the seed draws the pairs held back for validation, the random control and
            the training. `seed` draws what is the same for all: `limit`, `holdout` and the bootstrap.
        masses: τ of the curves of edits and controls that have one; without, each edit has one point.
        points: Curves over other settings, such as ``strength=0.5,1,2``, of the edits that have them.
        preserve: Safe captions and images that edits shall leave alone, see `uwm.calibration.read_preservation`; edits
            that have no use for it, such as uwm, run without.
        at_epochs: Epochs after which fine-tuning is measured too, beside its best one.
        validation: Share of the calibration pairs that no method learns from, for fine-tuning to stop by.
        text_layers, vision_layers: Of edits that do not say otherwise.
        training: Settings of all fine-tuning that does not say otherwise, such as ``epochs=5``.
        micro_batch, checkpointing, train_dtype: As in `uwm.backends.Computing`.
    """

    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    masses: tuple[float, ...] = ()
    points: tuple[str, ...] = ()
    preserve: str | None = None
    at_epochs: tuple[int, ...] = ()
    validation: float = 0.1
    text_layers: str = TEXT_LAYERS
    vision_layers: str = VISION_LAYERS
    training: tuple[str, ...] = ()
    micro_batch: int | None = None
    checkpointing: bool = False
    train_dtype: str = "auto"

    def computing(self) -> Computing:
        """What the backends ask of the machine."""
        return Computing(self.train_dtype, self.micro_batch, self.checkpointing, self.batch_size, self.workers)

    def curves(self) -> dict[str, tuple[float, ...]]:
        """Setting -> its values on the curves. Raises BadInput."""
        found: dict[str, tuple[float, ...]] = {"mass": self.masses} if self.masses else {}
        for text in self.points:
            name, equals, values = text.partition("=")
            try:
                numbers = tuple(float(value) for value in values.split(","))
            except ValueError:
                numbers = ()
            if not equals or not numbers or len(set(numbers)) < len(numbers):
                raise BadInput(f"--points {text!r}: expected NAME=NUMBER,NUMBER,…, different numbers")
            found[name.strip().replace("-", "_")] = numbers
        return found

    def of(self, model: str) -> CompareRecipe:
        """The same with another model: what the flags say of bare weights holds for files only."""
        bare: dict[str, Any] = {} if Path(model).is_file() else dict.fromkeys(BARE)
        return replace(self, model=model, revision=None, key=None, **bare)

    def check(self, trains: bool) -> None:
        """Refuse numbers that cannot work. Raises BadInput."""
        self.curves()
        for mass in self.masses:
            check_share(mass)
        if len(set(self.masses)) < len(self.masses):
            raise BadInput(f"--masses {','.join(map(str, self.masses))}: expected different numbers")
        for flag, numbers, least in (("seeds", self.seeds, 0), ("at-epochs", self.at_epochs, 1)):
            if any(not least <= number <= LARGEST for number in numbers) or len(set(numbers)) < len(numbers):
                raise BadInput(f"--{flag} {','.join(map(str, numbers))}: expected different numbers from {least}")
        if not self.seeds:
            raise BadInput("--seeds: expected at least one")
        if not 0 <= self.validation < 1 or (trains and self.validation == 0):
            least_share = "over 0, which fine-tuning stops by" if trains else "from 0"
            raise BadInput(f"--validation {self.validation}: expected a share {least_share}, below 1")
