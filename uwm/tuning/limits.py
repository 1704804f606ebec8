"""An edit within a limit of loss: chosen on the calibration pairs, judged on held-out ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..calibration import CalibrationSet, Preservation, Shared, image_paths
from ..errors import BadInput
from ..evaluation import EvalResult, differences
from ..inputs import Inputs
from ..knowledge import DataSet
from ..knowledge.halves import halves
from ..manifest import LimitFacts, TermFacts
from ..models import Model
from ..statistics.batches import Progress
from .choosing import Choice, Ground, Wish, choose
from .search import Aim


@dataclass(frozen=True)
class Limit:
    """What may be lost, and what it is judged by.

    Attributes:
        wish, aim: What was asked for.
        choosing, measuring: The two halves of each zero-shot data set: to choose by, and to measure on.
    """

    wish: Wish
    aim: Aim
    choosing: dict[str, DataSet]
    measuring: dict[str, DataSet]

    @classmethod
    def of(
        cls,
        wish: Wish,
        calibration: CalibrationSet,
        data_sets: Mapping[str, DataSet],
        preserve: Preservation | None,
        seed: int,
    ) -> Limit:
        """Before a model is loaded. Raises BadInput for figures that will not be measured."""
        aim = wish.aim(calibration, data_sets, preserve is not None)
        choosing, measuring = {}, {}
        for name, data in data_sets.items():
            choosing[name], measuring[name] = halves(data, seed)
        return cls(wish, aim, choosing, measuring)

    def check_apart(self, held_out: Mapping[str, CalibrationSet], shared: Mapping[str, Shared]) -> None:
        """Refuse to measure on what settings are chosen by. Raises BadInput."""
        for name, common in shared.items():
            if common.pairs:
                raise BadInput(
                    f"{name}: {common.pairs} of {len(held_out[name])} pairs share captions or images with the pairs "
                    f"that settings are chosen by ({common.captions} captions, {common.images} images); measure on "
                    "pairs that share none, or leave --eval out and let uwm hold some out"
                )
        for name, held in held_out.items():
            for data in self.choosing.values():
                if found := next(_pictures_of(held, data), None):
                    raise BadInput(
                        f"{name}: {found[0]} is also {found[1]} of the zero-shot data set {data.name}, which settings "
                        "are chosen by; take it out of one of them"
                    )

    def choose(
        self,
        inputs: Inputs,
        model: Model,
        calibration: CalibrationSet,
        preserve: Preservation | None,
        progress: Progress | None,
    ) -> Choice:
        """The safest edit within it. Raises BadInput, and InvalidResult where no edit stays within it."""
        how: dict[str, Any] = {"batch_size": inputs.batch_size, "workers": inputs.workers, "progress": progress}
        ground = Ground.of(model, calibration, preserve, inputs.seed, data_sets=self.choosing, **how)
        return choose(ground, self.wish, self.aim)

    def facts(self, choice: Choice, results: Mapping[str, Mapping[str, EvalResult]], method: str) -> LimitFacts:
        """What uwm.json says: the search, the limit in cross-validation and on every held-out set."""
        found = choice.found
        return {
            "max_loss": self.wish.max_loss,
            "objective": self.aim.objective.text,
            "trials": found.trials,
            "invalid": found.invalid,
            "cross_validated": {
                "folds": choice.folds,
                "pairs": choice.result.pairs,
                "before": self.aim.objective.value(choice.baseline),
                "after": self.aim.objective.value(choice.result),
                "terms": _terms(self.aim, choice.result, choice.baseline),
            },
            "held_out": {
                name: _terms(self.aim, columns[method], columns["before"]) for name, columns in results.items()
            },
            "front": [
                {"method": one.method, "settings": one.settings, "objective": one.objective, "loss": one.loss}
                for one in choice.front
            ],
        }


def _terms(aim: Aim, result: EvalResult, baseline: EvalResult) -> list[TermFacts]:
    """The verdict of every term that was measured."""
    changes = differences(result, baseline)
    verdicts = [term.check(result, baseline, changes) for term in aim.terms]
    return [TermFacts(**asdict(verdict)) for verdict in verdicts if verdict.found is not None]  # type: ignore[typeddict-item]


def _pictures_of(held: CalibrationSet, data: DataSet) -> Iterator[tuple[Path, Path]]:
    """Images of a set that are pictures of a data set too, byte for byte, and which; only of data sets of files."""
    sizes: dict[int, list[Path]] = {}
    for path in image_paths(held.pairs):
        sizes.setdefault(path.stat().st_size, []).append(path)
    for file, _ in getattr(data.pictures, "samples", ()):
        picture = Path(file)
        for path in sizes.get(picture.stat().st_size, ()):
            if held.hashed(path) == held.hashed(picture):
                yield path, picture
