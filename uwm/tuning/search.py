"""The search over methods and settings, by Optuna: one study a method, each a function of what was tried before."""

from __future__ import annotations

import hashlib
import logging
import math
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput, InvalidResult
from ..evaluation import EvalResult
from ..models import Model
from ..statistics.batches import Progress
from ..tracking import note
from .candidates import Candidates
from .criteria import Criteria
from .cross_validation import CrossValidation
from .folds import Profile
from .journal import OURS, check_trials, damaged_is_told, is_done, open_storage
from .space import Space

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

ROUNDS = 12  # trials of every quick method before the better ones get more
LEADER = 4  # then all trials but one of so many are the leader's
SLOW_EVERY = 20  # of so many trials one is of a method whose edits run the whole model

logger = logging.getLogger(__name__)


Done = tuple[int, str, "FrozenTrial"]


@dataclass(frozen=True)
class Tried:
    """One candidate.

    Attributes:
        number: From 0, in the order in which they were tried.
        method, settings: What it is; settings that are the editor's own are left out.
        objective: In percent.
        loss: As `Criteria.of` has it.
    """

    number: int
    method: str
    settings: dict[str, Any]
    objective: float
    loss: float


@dataclass(frozen=True)
class Found:
    """What a search tried.

    Attributes:
        tried: Every candidate that was measured on all folds, in order.
        invalid: How many could not be: the editor refused, or figures were no numbers.
        stopped: How many were left after the data sets or the first fold, since another one is clearly better.
        seconds: Method -> what its trials took together.
        trials: Method -> how many.
    """

    tried: tuple[Tried, ...]
    invalid: int
    stopped: int
    seconds: dict[str, float]
    trials: dict[str, int]


class Search:
    """Tries candidates one by one.

    Attributes:
        candidates: Makes and measures them.

    Args:
        model: Unedited.
        profile, validation: Statistics and figures by cross-validation.
        spaces: Method -> what to try of it; at least one.
        criteria: What to look for.
        seed: For every draw; with the trials that there are, it decides the next one.
        journal: A file that keeps the trials, so that a search that was killed goes on; None for memory.
    """

    def __init__(
        self,
        model: Model,
        profile: Profile,
        validation: CrossValidation,
        spaces: Mapping[str, Space],
        criteria: Criteria,
        *,
        seed: int,
        journal: Path | None = None,
    ) -> None:
        self._model, self._validation, self._spaces = model, validation, spaces
        self._criteria, self._seed = criteria, seed
        self.candidates = Candidates(model, profile, validation, spaces, detailed=criteria.detailed, seed=seed)
        with quiet(), damaged_is_told(journal):
            storage = open_storage(journal)
            self._studies = {name: self._study(name, storage) for name in spaces}
            check_trials(journal, self._studies, spaces, 1 if criteria.limited else 2)
            for study in self._studies.values():
                _end_unfinished(study)
        self._history: list[Done] = []  # number, method and trial of all that are done, in order
        self._tried: list[Tried] = []  # of these, those measured on all folds
        for done in self._earlier():
            self._note(*done)

    def run(self, trials: int, progress: Progress | None = None) -> Found:
        """Try until there are so many, those of earlier runs included."""
        done = self.done
        left: Iterable[int] = range(done, trials)
        if progress is not None and done < trials:
            left = progress(left, trials - done, "search")
        with quiet(), self._model.stored_at_hand(), ExitStack() as processes:
            for number in left:
                if number == max(done, len(self._spaces)):  # every method was tried once, and keeps what it needs
                    processes.enter_context(self.candidates.several_processes())
                self._try(number, self._next_method())
        return self._found()

    @property
    def done(self) -> int:
        """How many trials there are."""
        return len(self._history)

    # ------------------------------------------------------------ one trial

    def _try(self, number: int, method: str) -> None:
        space, study = self._spaces[method], self._studies[method]
        study.sampler = self._sampler(method, number)
        if not any(own == method for _, own, _ in self._history) and not _waiting(study):
            study.enqueue_trial(space.start())
        trial, begun = study.ask(space.distributions()), time.perf_counter()
        chosen = {**space.given, **trial.params}
        about: dict[str, Any] = {"number": number}
        try:
            with closing(self.candidates.parts(method, chosen)) as parts:
                about["quick"] = next(parts)
                objective, about["loss"], about["stopped"] = self._measured(method, parts)
        except (BadInput, InvalidResult) as error:
            logger.info("%s %s: %s", method, chosen, error)
            about["invalid"] = str(error)
        about["seconds"] = round(time.perf_counter() - begun, 4)
        trial.set_user_attr(OURS, about)
        if "invalid" in about:
            told = _fail(study, trial.number)
        else:
            if self._criteria.limited:
                trial.set_constraint("loss", about["loss"])
            value = self._criteria.better(objective)
            told = study.tell(trial, [value] if self._criteria.limited else [value, about["loss"]])
            note(number, {f"trials/{method}/objective": objective, f"trials/{method}/loss": about["loss"]})
        self._note(number, method, told)

    def _measured(self, method: str, parts: Iterator[Any]) -> tuple[float, float, bool]:
        """Objective and loss, and whether they are of a part only, because it came out clearly worse."""
        found: list[tuple[float, float]] = []

        def hopeless(first: EvalResult, baseline: EvalResult) -> bool:
            certain = self._criteria.loss_of_data_sets(first, baseline)
            if first.pairs:
                try:
                    found.append(self._criteria.of(first, baseline))
                except InvalidResult:  # nothing of a figure lies in this fold, such as of what is preserved
                    return False
                return self._clearly_worse(*found[0], certain, first.pairs)
            if self._criteria.limited and certain > 0 and any(one.loss <= 0 for one in self._tried):
                found.append((self._tried[0].objective, certain))  # beyond its bound, no objective counts
            return bool(found)

        detailed = self._criteria.detailed
        whole = detailed or not any(one.method == method for one in self._tried)  # each method once at least
        result = self._validation.together(parts, detailed, None if whole else hopeless)
        if result.pairs < self._validation.pairs:
            return *found[0], True
        return *self._criteria.of(result, self._validation.baseline), False

    def _clearly_worse(self, objective: float, loss: float, certain: float, pairs: int) -> bool:
        """Whether a candidate that was measured on all folds is better by more than folds differ by chance.

        That is two standard errors of a share of so many pairs among all, at its largest; of a loss, which is a
        difference of shares that move together, a third of it (racing, after Maron and Moore, "Hoeffding Races", 1993).

        Args:
            objective, loss: From the first fold and the data sets.
            certain: The loss of data sets alone, to which other folds add nothing.
            pairs: Of the first fold.
        """
        clear = 100 * math.sqrt(1 / pairs - 1 / self._validation.pairs)
        value, limited = self._criteria.better(objective) + clear, self._criteria.limited
        for one in self._tried:
            within, better = one.loss <= 0, self._criteria.better(one.objective) >= value
            if limited and within and (loss >= clear / 3 or better):
                return True
            if one.loss <= max(loss - clear / 3, certain) and (better or (limited and not within)):
                return True
        return False

    def _sampler(self, method: str, number: int) -> Any:
        """Seeded by the number of the trial, so that a search that was killed goes on as if it was not."""
        from .sampler import Sampler

        drawn = hashlib.sha256(f"{self._seed} {method} {number}".encode()).digest()
        return Sampler(int.from_bytes(drawn[:4], "big"), self._spaces[method].distributions())

    def _study(self, name: str, storage: BaseStorage) -> Study:
        import optuna

        directions: Any = ["maximize"] if self._criteria.limited else ["maximize", "minimize"]
        return optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)

    # ------------------------------------------------------------ what comes next

    def _note(self, number: int, method: str, trial: FrozenTrial) -> None:
        """Take a trial that is done into account."""
        self._history.append((number, method, trial))
        about = trial.user_attrs[OURS]
        if trial.values is not None and not about["stopped"]:
            chosen = {**self._spaces[method].given, **trial.params}
            objective = self._criteria.better(trial.values[0])
            self._tried.append(Tried(number, method, chosen, objective, about["loss"]))

    def _earlier(self) -> list[Done]:
        """What earlier runs have done."""
        found = [
            (trial.user_attrs[OURS]["number"], method, trial)
            for method, study in self._studies.items()
            for trial in study.get_trials(deepcopy=False)
            if is_done(trial)
        ]
        return sorted(found, key=lambda one: one[0])

    def _next_method(self) -> str:
        """Every method first; then quick ones in turn, then mostly the leader; slow ones now and then."""
        history = self._history
        counts = dict.fromkeys(self._spaces, 0)
        slow = dict.fromkeys(self._spaces, True)
        for _, method, trial in history:
            counts[method] += 1
            slow[method] &= not trial.user_attrs[OURS].get("quick", False)
        fewest = min(counts, key=lambda name: counts[name])
        if counts[fewest] == 0:
            return fewest
        quick = [name for name in counts if not slow[name]]
        rare = [name for name in counts if slow[name]]
        if not quick or (rare and len(history) % SLOW_EVERY == SLOW_EVERY - 1):
            return min(rare, key=lambda name: counts[name])
        fewest = min(quick, key=lambda name: counts[name])
        if counts[fewest] < ROUNDS or len(history) % LEADER == 0:
            return fewest
        return self._leader(quick)

    def _leader(self, names: Sequence[str]) -> str:
        """Of these methods the one with the best candidate within bounds, or with the most points of the front."""
        from .points import front_of

        tried = [one for one in self._tried if one.method in names]
        if not tried:
            return names[0]
        if self._criteria.limited:
            within = [one for one in tried if one.loss <= 0]
            best = (
                max(within, key=lambda one: self._criteria.better(one.objective)) if within else min(tried, key=_loss)
            )
            return best.method
        rows = front_of([vars(one) for one in tried], self._criteria.lower_is_better)
        front = [tried[row].method for row in rows]
        return max(names, key=front.count)

    def _found(self) -> Found:
        seconds, trials = dict.fromkeys(self._spaces, 0.0), dict.fromkeys(self._spaces, 0)
        for _, method, trial in self._history:
            seconds[method] += trial.user_attrs[OURS]["seconds"]
            trials[method] += 1
        stopped = sum(trial.user_attrs[OURS].get("stopped", False) for _, _, trial in self._history)
        return Found(tuple(self._tried), len(self._history) - len(self._tried) - stopped, stopped, seconds, trials)


def _loss(tried: Tried) -> float:
    return tried.loss


def _end_unfinished(study: Study) -> None:
    """Trials that a killed search left; they are made anew."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        _fail(study, trial.number)


def _waiting(study: Study) -> bool:
    from optuna.trial import TrialState

    return bool(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))


def _fail(study: Study, number: int) -> FrozenTrial:
    from optuna.trial import TrialState

    return study.tell(number, state=TrialState.FAIL)


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna without its log lines and without warnings of what it calls experimental."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
