"""An edit within a budget of loss: chosen on the calibration pairs, judged on held-out ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..calibration import CalibrationSet, Shared, image_paths
from ..embedding import quadruples
from ..errors import BadInput
from ..evaluation import EvalResult, differences
from ..expressions.expression import ZERO_SHOT_FIGURES
from ..figures import LEAST_FIRM_PAIRS
from ..inputs import Inputs, Sets
from ..knowledge import DataSet
from ..knowledge.halves import halves
from ..manifest import BudgetFacts, TermFacts
from ..models import Model
from ..statistics.batches import Progress
from .choosing import Choice, Ground, SearchRequest, choose
from .criteria import Criteria
from .folds import Folds, draw_folds


@dataclass(frozen=True)
class Budget:
    """What may be lost, and what it is judged by.

    Attributes:
        request, criteria: What was asked for.
        choosing, measuring: The two halves of each zero-shot data set: to choose by, and to measure on.
        folds: What is learnt from, for cross-validation.
    """

    request: SearchRequest
    criteria: Criteria
    choosing: dict[str, DataSet]
    measuring: dict[str, DataSet]
    folds: Folds

    @classmethod
    def of(cls, request: SearchRequest, sets: Sets, seed: int) -> Budget:
        """Before a model is loaded.

        Raises:
            BadInput: Figures that will not be measured; pairs without captions and images, or that make no folds;
                pairs to measure on that share something with what settings are chosen by.
        """
        calibration, choosing, measuring = sets.calibration, {}, {}
        criteria = request.criteria(calibration, sets.data_sets, sets.preserve is not None)
        for name, data in sets.data_sets.items():
            choosing[name], measuring[name] = halves(data, seed)
        quadruples(calibration)
        if len(calibration) < 2:
            raise BadInput(
                f"{calibration.root}: 1 calibration pair; at least 2 are needed, to choose settings on folds"
            )
        budget = cls(request, criteria, choosing, measuring, draw_folds(calibration, sets.preserve, seed))
        budget._check_apart(sets.held_out, sets.checked.shared)
        return budget

    @property
    def told(self) -> list[str]:
        """What a user should know of the pairs to choose by."""
        pairs = len(quadruples(self.folds.together))
        few = (
            f"edits are chosen by the figures of only {pairs} pairs; those of fewer than {LEAST_FIRM_PAIRS} tell little"
        )
        return [few] if pairs < LEAST_FIRM_PAIRS else []

    def _check_apart(self, held_out: Mapping[str, CalibrationSet], shared: Mapping[str, Shared]) -> None:
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

    def ground(self, inputs: Inputs, model: Model, progress: Progress | None) -> Ground:
        """What a search learns from and chooses by. Raises BadInput for a model of one tower."""
        how: dict[str, Any] = {"batch_size": inputs.batch_size, "workers": inputs.workers, "progress": progress}
        return Ground(model, self.folds, self.choosing, seed=inputs.seed, **how)

    def choose(self, inputs: Inputs, model: Model, progress: Progress | None) -> Choice:
        """The safest edit within it. Raises BadInput, and InvalidResult where no edit stays within it."""
        return choose(self.ground(inputs, model, progress), self.request, self.criteria)

    def facts(self, choice: Choice, results: Mapping[str, Mapping[str, EvalResult]]) -> BudgetFacts:
        """What uwm.json says: the search, the budget in cross-validation and on every held-out set."""
        found, method = choice.found, choice.chosen.method
        return {
            "max_loss": self.request.max_loss,
            "objective": self.criteria.objective.text,
            "method": method,
            "settings": choice.chosen.settings,
            "trials": found.trials,
            "invalid": found.invalid,
            "stopped": found.stopped,
            "cross_validated": {
                "folds": choice.folds,
                "pairs": choice.result.pairs,
                "before": self.criteria.objective.value(choice.baseline),
                "after": self.criteria.objective.value(choice.result),
                "terms": _terms(self.criteria, choice.result, choice.baseline),
            },
            "held_out": {
                name: _terms(self.criteria, columns[method], columns["before"]) for name, columns in results.items()
            },
            "front": [
                {"method": one.method, "settings": one.settings, "objective": one.objective, "loss": one.loss}
                for one in choice.front
            ],
        }


def _terms(criteria: Criteria, result: EvalResult, baseline: EvalResult) -> list[TermFacts]:
    """The verdict of every term whose figure was measured: held-out sets have no preservation set, and only the first
    has data sets."""
    changes = differences(result, baseline)
    there = {*result.figures, *(ZERO_SHOT_FIGURES if result.zero_shot else ())}
    terms = [term for term in criteria.terms if term.expression.figure in there]
    return [TermFacts(**asdict(term.check(result, baseline, changes))) for term in terms]  # type: ignore[typeddict-item]


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
