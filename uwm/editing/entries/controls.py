"""Controls of UWM as editors: as many entries of the same weights, chosen otherwise. Importing this needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ..changes import Scale
from ..editors import Pairs, Proposal
from .editor import UWM, EntryEditor, EntrySettings, EntryStatistics

if TYPE_CHECKING:
    from ...models import Model
    from ..patch import Patch

Choose = Callable[["Model", Proposal, int], Proposal]


@dataclass(frozen=True)
class ControlEditor:
    """As many entries of every weight as an entry editor would choose, chosen in another way.

    Attributes:
        name, title, source: As in `uwm.editing.editors.Editor`.
        counts: Gives the counts and the factor.
        chosen: From the model, that editor's proposal and a seed.
    """

    name: str
    title: str
    source: str
    chosen: Choose
    counts: EntryEditor = UWM
    Settings: ClassVar[type] = EntrySettings

    def check(self, settings: EntrySettings) -> None:
        self.counts.check(settings)

    def measured(self, settings: EntrySettings) -> Any:
        return self.counts.measured(settings)

    def statistics(self, model: Model, pairs: Pairs, settings: EntrySettings) -> EntryStatistics:
        return self.counts.statistics(model, pairs, settings)

    def edit(self, model: Model, statistics: EntryStatistics, settings: EntrySettings, seed: int = 0) -> Proposal:
        return self.chosen(model, self.counts.edit(model, statistics, settings), seed)

    def control(self, model: Model, statistics: EntryStatistics, settings: EntrySettings, seed: int = 0) -> Proposal:
        return self.counts.control(model, statistics, settings, seed)


def random_entries(model: Model, proposal: Proposal, seed: int) -> Proposal:
    """As many entries of every weight, drawn at random."""
    from ..editors import random_control

    return random_control(proposal, {name: tuple(model.parameter(name).shape) for name in proposal.changes}, seed)


def largest_entries(model: Model, proposal: Proposal, seed: int = 0) -> Proposal:
    """As many entries of every weight, those of largest |W| as it is stored, of equal ones the first."""
    changes: dict[Any, Any] = {}
    for name, change in proposal.changes.items():
        assert isinstance(change, Scale)
        order = model.stored(name).flatten().double().abs().argsort(descending=True, stable=True)
        changes[name] = replace(change, indices=order[: len(change.indices)].sort().values.numpy())
    return Proposal(changes, settings=proposal.settings)


RANDOM = ControlEditor("random", "a random choice of as many entries as UWM's", "a control; no paper", random_entries)
MAGNITUDE = ControlEditor(
    "magnitude", "a choice of the largest entries, as many as UWM's", "a control; no paper", largest_entries
)


# ---------------------------------------------------------------- the same of a patch


def random_control(patch: Patch, seed: int = 0) -> Patch:
    """A patch of equal kind and size, drawn at random for every tensor."""
    from ..editors import random_control as draw

    changes = draw(Proposal(dict(patch.changes)), patch.shapes, seed).changes
    return replace(patch, changes=changes, recipe={"method": "random", "seed": seed}, edited={}, missed={}, norms={})


def magnitude_control(patch: Patch, model: Model) -> Patch:
    """As many entries of the same weights, those of largest |W|.

    Args:
        patch: Of scaled entries; it gives the counts and α.
        model: Unedited, the one that the patch was made for.

    Raises:
        BadInput: As `patched`.
    """
    from ..live import check_live

    check_live(model, patch)
    changes = largest_entries(model, Proposal(dict(patch.changes))).changes
    return replace(patch, changes=changes, recipe={"method": "magnitude"}, edited={}, missed={}, norms={})
