"""From what may be lost to a method and its settings: what `uwm edit --max-loss` does before it edits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from ..calibration import CalibrationSet, Preservation
from ..editing import settings
from ..editing.editors import editor_names, find_editor
from ..errors import BadInput, InvalidResult
from ..evaluation import EvalResult, concepts_of, differences
from ..expressions import Verdict, check_known, parse_max_loss, parse_objective
from ..knowledge import DataSet
from ..models import Model
from ..report.budget import settings_words, term_words
from ..statistics.batches import BATCH_SIZE, Progress
from .cached_sets import Changes
from .criteria import Criteria
from .cross_validation import CrossValidation
from .defaults import OBJECTIVE, QUICK, TRIALS
from .folds import Folds, Profile, draw_folds
from .points import front_of
from .search import Found, Search, Tried
from .space import Space


@dataclass(frozen=True)
class SearchRequest:
    """What a user asks of a search.

    Attributes:
        max_loss: As in `uwm.expressions.parse_max_loss`.
        limited: It is a budget; otherwise its figures are what a trade-off is with.
        objective: As in `uwm.expressions.parse_objective`.
        methods: Those to try; none for the usual ones, or those of them that have all settings which are given.
        given: Settings by hand.
        trials: How many candidates.
        usual: The methods to try where none is named, as far as they are installed.
    """

    max_loss: str
    limited: bool = True
    objective: str = OBJECTIVE
    methods: tuple[str, ...] = ()
    given: Mapping[str, Any] = field(default_factory=dict)
    trials: int = TRIALS
    usual: tuple[str, ...] = QUICK

    def check(self) -> None:
        """Refuse what is wrong whatever the model and the sets are. Raises BadInput."""
        parse_objective(self.objective)
        parse_max_loss(self.max_loss)
        for name in self.names():
            settings.make(find_editor(name), self.given)

    def criteria(self, calibration: CalibrationSet, data_sets: Mapping[str, DataSet], preserve: bool) -> Criteria:
        """What to look for on these sets. Raises BadInput for figures that will not be measured."""
        objective = parse_objective(self.objective)
        terms = parse_max_loss(self.max_loss, [*data_sets], preserve)
        known = concepts_of(calibration), [*data_sets]
        check_known([objective], *known, "--objective", preserve)
        check_known(terms, *known, "--max-loss", preserve)
        return Criteria(objective, terms, self.limited)

    def names(self) -> list[str]:
        """The methods to try. Raises BadInput for an unknown one, and where none has the settings that are given."""
        flag = "--method" if self.limited else "--methods"
        for name in self.methods:
            if name not in editor_names():
                raise BadInput(f"{flag} {name!r}: expected one of {', '.join(editor_names())}")
        names = self.methods or tuple(name for name in self._default if self._has_given(name))
        if not names:
            raise BadInput(
                f"{', '.join(f'--{settings.flag(name)}' for name in self.given)}: no method that is tried by default "
                f"({', '.join(self._default)}) has {'this setting' if len(self.given) == 1 else 'all these settings'}; "
                f"name one that has with {flag}"
            )
        return [*dict.fromkeys(names)]

    def spaces(self, model: Model) -> dict[str, Space]:
        """Method -> what to try of it. Raises BadInput as `names`."""
        return {name: Space.of(find_editor(name), self.given, model) for name in self.names()}

    @property
    def _default(self) -> list[str]:
        return [name for name in self.usual if name in editor_names()]

    def _has_given(self, name: str) -> bool:
        return {*self.given} <= {f.name for f in fields(find_editor(name).Settings)}


@dataclass(frozen=True)
class Ground:
    """What a search learns from and chooses by.

    Attributes:
        model: Unedited, with both towers.
        folds: The calibration pairs and the preservation set.
        data_sets: Halves to choose by.
        seed, batch_size, workers, progress: As in `uwm.score`.
        refused: Methods that cannot be tried with the model and the pairs, and why; found by `search`.
    """

    model: Model
    folds: Folds
    data_sets: Mapping[str, DataSet]
    seed: int = 0
    batch_size: int = BATCH_SIZE
    workers: int = 2
    progress: Progress | None = None
    refused: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, model: Model, calibration: CalibrationSet, preserve: Preservation | None, seed: int, **others: Any
    ) -> Ground:
        """With folds drawn. Raises BadInput where there are none, or the model has one tower only."""
        return cls(model, draw_folds(calibration, preserve, seed), seed=seed, **others)

    def __post_init__(self) -> None:
        if len(self.model.modalities) < 2:
            (tower,) = self.model.modalities
            raise BadInput(
                f"edits can be chosen for a model with both towers only, since they are chosen by safety; this one has "
                f"only a {tower} tower. Give settings by hand, without --max-loss"
            )

    @cached_property
    def validation(self) -> CrossValidation:
        """What edits are measured by."""
        return CrossValidation(self.model, self.folds, self.data_sets, seed=self.seed, **self.reading)

    @cached_property
    def profile(self) -> Profile:
        """What editors are given."""
        return Profile(self.model, self.folds, **self.reading)

    @property
    def reading(self) -> dict[str, Any]:
        """How sets are read."""
        return {"batch_size": self.batch_size, "workers": self.workers, "progress": self.progress}

    def search(self, request: SearchRequest, criteria: Criteria, journal: Path | None = None) -> Search:
        """A search over the methods that are asked for.

        Raises:
            BadInput: No method can be tried with the model and the pairs, or one that was asked for cannot.
        """
        spaces = self._possible(request)
        _check_baseline(criteria, self.validation.baseline)
        return Search(self.model, self.profile, self.validation, spaces, criteria, seed=self.seed, journal=journal)

    def _possible(self, request: SearchRequest) -> dict[str, Space]:
        """The methods that the model and the pairs have what is needed for, after one pass for all of them."""
        spaces, asked = request.spaces(self.model), []
        for name, space in [*spaces.items()]:
            made = settings.make(space.editor, {**space.start(), **space.given})
            try:
                self.profile.check(space.editor, made)
                asked.append((space.editor, made))
            except BadInput as error:
                if request.methods:
                    raise
                self.refused.append(f"{name} is not tried: {error}")
                del spaces[name]
        if not spaces:
            raise BadInput(f"no method can be tried: {'; '.join(self.refused)}")
        self.profile.gather(asked)
        return spaces


@dataclass(frozen=True)
class Choice:
    """The safest candidate whose loss stays within the budget.

    Attributes:
        chosen: The candidate.
        changes: What it changes, from all pairs.
        found: Everything that was tried.
        criteria, folds: What for, and on how many folds it was measured.
        result, baseline: Its figures and the unedited model's, by cross-validation, with intervals.
        front: The trade-offs that it was chosen from, by loss.
        told: What a user should know: methods that were left out, and why.
    """

    chosen: Tried
    changes: Changes
    found: Found
    criteria: Criteria
    folds: int
    result: EvalResult
    baseline: EvalResult
    front: tuple[Tried, ...]
    told: tuple[str, ...] = ()

    def verdicts(self) -> list[Verdict]:
        """Every term of the budget in cross-validation."""
        return _verdicts(self.criteria, self.result, self.baseline)


def choose(ground: Ground, request: SearchRequest, criteria: Criteria) -> Choice:
    """Search, and take the candidate with the best objective among those within the budget; of equal ones the first.

    Raises:
        BadInput: As `Ground.search`. InvalidResult: No candidate stays within the budget.
    """
    search = ground.search(request, criteria)
    found = search.run(request.trials, ground.progress)
    within = [one for one in found.tried if one.loss <= 0]
    if not within:
        raise InvalidResult(_none_within(ground, search, found, request, criteria))
    chosen = max(within, key=lambda one: (criteria.better(one.objective), -one.number))
    edits = search.candidates.edits(chosen.method, chosen.settings)
    result = ground.validation.measure(edits, detailed=True)
    front = [found.tried[row] for row in front_of([vars(one) for one in found.tried], criteria.lower_is_better)]
    baseline, told = ground.validation.baseline, tuple(ground.refused)
    return Choice(chosen, edits.whole, found, criteria, len(ground.folds), result, baseline, tuple(front), told)


def _verdicts(criteria: Criteria, result: EvalResult, baseline: EvalResult) -> list[Verdict]:
    """Every term of the budget."""
    changes = differences(result, baseline)
    return [term.check(result, baseline, changes) for term in criteria.terms]


def _none_within(ground: Ground, search: Search, found: Found, request: SearchRequest, criteria: Criteria) -> str:
    """That no edit stays within the budget, and how far the nearest is from it."""
    if not found.tried:
        return f"--max-loss {request.max_loss}: none of {found.invalid} edits could be made and measured"
    least = min(found.tried, key=lambda one: one.loss)
    result = ground.validation.measure(search.candidates.edits(least.method, least.settings), detailed=True)
    missed = [asdict(verdict) for verdict in _verdicts(criteria, result, ground.validation.baseline) if not verdict.met]
    return (
        f"--max-loss {request.max_loss}: each of {len(found.tried)} edits that were tried loses more in "
        f"cross-validation on {result.pairs} pairs; the nearest is {least.method} {settings_words(least.settings)} "
        f"({'; '.join(map(term_words, missed))}). Allow more, give more pairs or raise --trials"
    )


def _check_baseline(criteria: Criteria, baseline: EvalResult) -> None:
    """Refuse figures that the unedited model has none of. Raises BadInput."""
    try:
        criteria.of(baseline, baseline)
    except InvalidResult as error:
        raise BadInput(f"this cannot be searched for: {error}") from None
