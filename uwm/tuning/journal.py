"""The journal of a search: the trials that Optuna keeps in a file, checked before they are gone on with."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput
from ..schema import (
    ANYTHING,
    COUNT,
    FLAG,
    NONE,
    NUMBER,
    OBJECT,
    TEXT,
    Check,
    Unexpected,
    choice,
    demand,
    each,
    holds,
    keyed,
    listed,
    nullable,
    whole,
)

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

    from .space import Space

OURS = "uwm"  # a trial's attribute: its number, whether it is quick, its loss, whether it was stopped early, or why it
# is invalid, and its seconds
CONSTRAINT = "constraints:loss"  # as Optuna keeps it
ANEW = "pass --overwrite to begin anew, or choose another output"


def open_storage(journal: Path | None) -> BaseStorage:
    """Optuna's storage in a file, or in memory. Raises BadInput for a file that is damaged or a link."""
    from optuna.storages import InMemoryStorage, JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    if journal is None:
        return InMemoryStorage()
    if journal.is_symlink() or (journal.exists() and not journal.is_file()):
        raise BadInput(f"{journal}: is a link or no regular file, which uwm never makes; {ANEW}")
    _clear(journal)
    if journal.exists():
        _check_lines(journal)
    return JournalStorage(JournalFileBackend(str(journal), lock_obj=JournalFileOpenLock(str(journal))))


def _clear(journal: Path) -> None:
    """Take away what a killed search may have left: its lock, for which Optuna waits half a minute, and half a line."""
    Path(f"{journal}.lock").unlink(missing_ok=True)  # JournalFileOpenLock's
    if not journal.exists():
        return
    with journal.open("rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


def _check_lines(journal: Path) -> None:
    """Every line is an operation of a search. Raises BadInput."""
    with journal.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                found = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise BadInput(f"{journal}:{number}: damaged: no JSON ({error}); {ANEW}") from None
            demand(journal, _operation, found, ANEW, f"line {number}")


@contextmanager
def damaged_is_told(journal: Path | None) -> Iterator[None]:
    """Whatever Optuna raises when it replays operations that do not fit each other is BadInput."""
    from optuna.exceptions import OptunaError

    try:
        yield
    except (OptunaError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError) as error:
        if journal is None:
            raise
        raise BadInput(f"{journal}: damaged: no search that uwm made ({error!r}); {ANEW}") from None


def check_trials(journal: Path | None, studies: Mapping[str, Study], spaces: Mapping[str, Space], values: int) -> None:
    """Refuse trials that this search cannot have made.

    Args:
        journal: The file; of a search in memory there is nothing to check.
        studies, spaces: By method: what there is, and what is searched.
        values: How many figures a trial is told with.

    Raises:
        BadInput: The text names the trial, and what was expected and found.
    """
    numbers: list[int] = []
    for method, study in studies.items() if journal is not None else ():
        for trial in study.get_trials(deepcopy=False):
            place = f"{method}, trial {trial.number}"
            demand(Path(str(journal)), _trial(spaces[method], values), trial, ANEW, place)
            numbers += [trial.user_attrs[OURS]["number"]] if is_done(trial) else []
    if len({*numbers}) < len(numbers):
        raise BadInput(f"{journal}: damaged: expected every trial once, found a number twice; {ANEW}")


def is_done(trial: FrozenTrial) -> bool:
    """Whether a trial was measured, or found invalid; others were left by a kill."""
    return trial.values is not None or (trial.state.is_finished() and "invalid" in trial.user_attrs.get(OURS, {}))


def _trial(space: Space, values: int) -> Check:
    """A trial's settings are drawn from what the search draws from, and its figures are numbers."""
    choices, start = space.distributions(), json.dumps(space.start())

    def check(trial: FrozenTrial, place: str) -> None:
        if any(choices.get(name) != drawn for name, drawn in trial.distributions.items()):
            raise Unexpected(place, f"settings of {sorted(choices)} as this search draws them", trial.params)
        given = trial.system_attrs.get("fixed_params")
        if given is not None and json.dumps(given) != start:
            raise Unexpected(place, f"the settings {start}", given)
        if OURS in trial.user_attrs:
            ABOUT(trial.user_attrs[OURS], place)
        if trial.values is None:
            return
        MEASURED(trial.user_attrs.get(OURS), place)
        if trial.distributions.keys() != choices.keys():
            raise Unexpected(place, f"the settings {sorted(choices)}", sorted(trial.params))
        listed(FIGURE, values)([*trial.values], f"{place}, values")

    return check


def _is_figure(value: Any) -> bool:
    return type(value) in (int, float) and not math.isnan(value)


FIGURE = holds("a number", _is_figure)  # a loss may be infinite
ABOUT = keyed({"number": COUNT, "seconds": NUMBER}, {"quick": FLAG, "loss": FIGURE, "stopped": FLAG, "invalid": TEXT})
MEASURED = each(ABOUT, keyed({"loss": FIGURE, "stopped": FLAG}))
OPERATIONS: dict[int, Check] = {
    0: keyed({"study_name": TEXT, "directions": listed(whole(1, 2), least=1, most=2)}),
    4: keyed({"study_id": COUNT}, {"state": whole(0, 4), "system_attrs": keyed({"fixed_params": OBJECT}, {}, NONE)}),
    5: keyed({"trial_id": COUNT, "param_name": TEXT, "param_value_internal": NUMBER, "distribution": TEXT}),
    6: keyed({"trial_id": COUNT, "state": whole(0, 4), "values": nullable(listed(FIGURE, least=1, most=2))}),
    8: keyed({"trial_id": COUNT, "user_attr": keyed({OURS: ABOUT}, {}, NONE)}),
    9: keyed({"trial_id": COUNT, "system_attr": keyed({}, {CONSTRAINT: FIGURE, "fixed_params": OBJECT}, TEXT)}),
}  # by Optuna's number of what is done, of those that a search does


def _operation(value: Any, place: str) -> None:
    keyed({"op_code": choice(*OPERATIONS), "worker_id": TEXT}, rest=ANYTHING)(value, place)
    OPERATIONS[value["op_code"]](value, place)
