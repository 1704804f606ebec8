"""What an editor is, and which are installed (entry points ``uwm.editors``). Importing this needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from .. import plugins
from ..errors import BadInput
from ..weights import WeightId
from . import settings
from .changes import Change

if TYPE_CHECKING:
    from ..models import Model
    from ..statistics.batches import PairBatch

GROUP = "uwm.editors"
DEFAULT = "uwm"


@dataclass(frozen=True)
class Pairs:
    """What an editor knows of the pairs before the pass.

    Attributes:
        modalities: Those that any pair has, of ``text`` and ``vision``.
        concepts: Modality -> the concept of each pair that has it, in the order of the pass; empty where unknown.
    """

    modalities: tuple[str, ...] = ("text", "vision")
    concepts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass
class Statistics:
    """What an editor asks of the one pass, and after it what the pass found.

    Attributes:
        towers: Which towers are run.
        reducers: By the editor's own names; see `uwm.statistics.passes.Reducer`.
        preserve: Likewise, fed with the preservation set, which has safe captions and images only.
        joint: Only pairs with captions and images, both in one batch.
        pairs: Tower -> pairs seen.
    """

    towers: tuple[str, ...]
    reducers: dict[str, Any]
    preserve: dict[str, Any] = field(default_factory=dict)
    joint: bool = False
    pairs: dict[str, int] = field(default_factory=dict)

    def feed(self, model: Model, batches: Iterable[PairBatch], also: Sequence[Any] = ()) -> None:
        """Run the pass, or one more part of it; `also` are reducers of others who need the same pairs."""
        from ..statistics.passes import run_pass

        seen = run_pass(model, batches, [*self.reducers.values(), *also], self.towers)
        self.pairs = {tower: self.pairs.get(tower, 0) + count for tower, count in seen.items()}

    def summed(self) -> list[Any]:
        """What `feed` changes, whose sums a run can keep (see `uwm.statistics.sums`)."""
        return [*self.reducers.values()]

    def feed_preserved(self, model: Model, batches: Iterable[PairBatch]) -> None:
        """Run the preservation set."""
        from ..statistics.passes import run_pass

        run_pass(model, batches, [*self.preserve.values()], self.towers, partly=True)


@dataclass(frozen=True)
class Proposal:
    """What an editor would change.

    Attributes:
        changes: Name -> change.
        notes: Name -> what a reader of uwm.json should know of this tensor: neutral cases, rank and the like.
        settings: The settings that decided it where the editor filled in what was not given.
        report: What it found, as JSON: quality of detectors by tower and the like.
        warnings: What a user should know.
    """

    changes: dict[WeightId, Change]
    notes: dict[WeightId, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Editor(Protocol):
    """A training-free editor. Plug-ins name an object of this kind under the entry point group ``uwm.editors``.

    Its module should import torch only inside of methods: flags and help texts are made from `Settings`.
    """

    @property
    def name(self) -> str:
        """As ``--method``; the entry point's name is the same."""

    @property
    def title(self) -> str:
        """As the card names it."""

    @property
    def source(self) -> str:
        """The paper and the equation."""

    @property
    def Settings(self) -> type:
        """A frozen dataclass with fields made by `uwm.editing.settings.setting`."""

    def check(self, settings: Any) -> None:
        """Refuse settings that cannot work, before anything is read. Raises UwmError."""

    def measured(self, settings: Any) -> Any:
        """What of the settings decides the statistics, with the editor's name: runs of equal ones share a pass."""

    def statistics(self, model: Model, pairs: Pairs, settings: Any) -> Statistics:
        """What the pass shall gather. Raises BadInput where model or pairs lack what the editor needs."""

    def edit(self, model: Model, statistics: Statistics, settings: Any, seed: int = 0) -> Proposal:
        """The edit, from statistics that were fed. The model is unedited. Raises InvalidResult."""

    def control(self, model: Model, statistics: Statistics, settings: Any, seed: int = 0) -> Proposal:
        """The control of equal kind and size, drawn with the seed; see `random_control`."""


def random_control(proposal: Proposal, shapes: Mapping[WeightId, tuple[int, ...]], seed: int) -> Proposal:
    """A random change of equal kind and size in place of every change of a proposal."""
    numbered = enumerate(proposal.changes.items())
    changes = {name: change.random(shapes[name], seed * 1_000_003 + n) for n, (name, change) in numbered}
    return Proposal(changes, settings=proposal.settings)


# ---------------------------------------------------------------- which are installed


def find_editors(only: str | None = None) -> Mapping[str, Editor]:
    """Name -> editor, sorted, of every distribution with entry points in the group ``uwm.editors``.

    Args:
        only: The distribution whose editors are wanted, such as ``uwm`` for ours.

    Raises:
        BadInput: On getting an editor: two have its name, or it cannot be imported or is no editor. An editor that
            nobody gets is not imported.
    """
    return plugins.Installed(GROUP, "editor", _lack, only)


def find_editor(name: str) -> Editor:
    """One editor; no other is imported. Raises BadInput for an unknown name, which lists those that there are."""
    editor = find_editors().get(name)
    if editor is None and not editor_names():
        raise BadInput("no editors are registered, not even ours; install uwm again with pip, which registers them")
    if editor is None:
        raise BadInput(f"--method {name!r}: expected one of {', '.join(editor_names())}")
    return editor


def editor_names() -> list[str]:
    """The names of all editors, the default first; none is imported."""
    return sorted(find_editors(), key=lambda name: (name != DEFAULT, name))


PARTS = {"name": str, "title": str, "source": str, "Settings": type}
METHODS = ("check", "measured", "statistics", "edit", "control")


def _lack(editor: Any) -> str | None:
    """What an object lacks to be an editor."""
    for part, kind in PARTS.items():
        if not isinstance(getattr(editor, part, None), kind):
            return f"expected an attribute {part!r}, a {kind.__name__}; see uwm.editing.editors.Editor"
    if not settings.declared(editor.Settings):
        return "expected 'Settings', a dataclass of fields that uwm.editing.settings.setting makes"
    missing = [name for name in METHODS if not callable(getattr(editor, name, None))]
    return f"expected a method {missing[0]!r}; see uwm.editing.editors.Editor" if missing else None
