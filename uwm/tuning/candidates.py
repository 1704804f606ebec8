"""What a search tries: methods with settings, made into edits and measured, if quick by several processes."""

from __future__ import annotations

import logging
from collections.abc import Container, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..editing import settings
from ..editing.editors import Editor, Proposal, Statistics
from ..editing.making import check_proposal, make_patch, recipe_of
from ..editing.patch import Patch
from ..models import Model
from .cached_sets import Changes
from .cross_validation import CrossValidation, Edits
from .folds import Profile
from .forked import Forked, how_many
from .space import Space

logger = logging.getLogger(__name__)


class Candidates:
    """Makes and measures candidates.

    Args:
        model: Unedited.
        profile, validation: Statistics and figures by cross-validation.
        spaces: Method -> what to try of it.
        detailed: As in `CrossValidation.measure`.
        seed: Of the edits.
    """

    def __init__(
        self,
        model: Model,
        profile: Profile,
        validation: CrossValidation,
        spaces: Mapping[str, Space],
        *,
        detailed: bool,
        seed: int,
    ) -> None:
        self._model, self._profile, self._validation, self._spaces = model, profile, validation, spaces
        self._detailed, self._seed = detailed, seed
        self._forked: Forked | None = None
        self._known: Container[Any] = frozenset()

    def edits(self, method: str, chosen: Mapping[str, Any]) -> Edits:
        """The changes of a candidate, from all pairs and without each fold. Raises BadInput, InvalidResult."""
        whole, *parts = (self._changes(*one) for one in self._calls(method, chosen))
        return Edits(whole, parts)

    def patch(self, method: str, chosen: Mapping[str, Any], calibration: str) -> Patch:
        """A candidate from all pairs as a patch; `calibration` is their fingerprint. Raises BadInput, InvalidResult."""
        editor, made, statistics, proposal = self._made(method, chosen, 0)
        about = recipe_of(editor, made, statistics, proposal, calibration, self._seed)
        return make_patch(self._model, proposal, about)

    def parts(self, method: str, chosen: Mapping[str, Any]) -> Generator[Any, None, None]:
        """Whether the edit is quick to measure, then what `CrossValidation.together` needs of it.

        Raises:
            BadInput, InvalidResult: It cannot be made or measured. ResourceFault: As `Forked.results`.
        """
        calls = self._calls(method, chosen)
        if (forked := self._helpers(method, chosen)) is not None:
            found = forked.results(calls)
            if (first := next(found)) is not None:
                yield True
                yield first
                yield from found
                return
        changes = self._changes(*calls[0])
        yield self._validation.is_quick(changes)
        yield self._measured(0, changes)
        for one in calls[1:]:
            yield self._measured(one[2], self._changes(*one))

    @contextmanager
    def several_processes(self) -> Iterator[None]:
        """While the body runs, quick edits are measured by several processes, where there can be several.

        They know the statistics, and what editors and the model keep, that are there when the first is asked.
        """
        if number := how_many(len(self._profile) + 1, self._model.device):
            try:
                self._forked, self._known = Forked(number, self._part), self._profile.known
            except OSError as error:
                logger.info("the search goes on in one process: %s", error)
        try:
            yield
        finally:
            if self._forked is not None:
                self._forked.close()
            self._forked, self._known = None, frozenset()

    # ------------------------------------------------------------ one part: 0 are the data sets, then comes each fold

    def _calls(self, method: str, chosen: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], int]]:
        return [(method, chosen, number) for number in range(len(self._profile) + 1)]

    def _made(self, method: str, chosen: Mapping[str, Any], number: int) -> tuple[Editor, Any, Statistics, Proposal]:
        """From all pairs, or where the number is not 0, without the fold before it."""
        editor = self._spaces[method].editor
        made = settings.make(editor, chosen)
        statistics = self._profile.statistics(editor, made)[number]
        return editor, made, statistics, editor.edit(self._model, statistics, made, self._seed)

    def _changes(self, method: str, chosen: Mapping[str, Any], number: int) -> Changes:
        proposal = self._made(method, chosen, number)[-1]
        check_proposal(self._model, proposal)
        return proposal.changes

    def _measured(self, number: int, changes: Changes) -> Any:
        if number == 0:
            return self._validation.classify(changes)
        return self._validation.fold(number - 1, changes, self._detailed)

    def _part(self, method: str, chosen: Mapping[str, Any], number: int) -> Any:
        """As another process measures it; None of an edit that is not quick, which needs all threads."""
        changes = self._changes(method, chosen, number)
        return self._measured(number, changes) if self._validation.is_quick(changes) else None

    def _helpers(self, method: str, chosen: Mapping[str, Any]) -> Forked | None:
        """The processes, where they know the statistics."""
        editor = self._spaces[method].editor
        known = self._forked is not None and editor.measured(settings.make(editor, chosen)) in self._known
        return self._forked if known else None
