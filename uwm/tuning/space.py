"""What a search tries of an editor's settings, as they declare it: see `uwm.editing.settings.Range`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from typing import TYPE_CHECKING, Any

from ..editing import settings
from ..editing.editors import Editor
from ..editing.settings import Range
from ..errors import UwmError
from ..models import Model

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

BOTH_TOWERS = {"mass": ("text_mass", "vision_mass")}  # a setting, and those that say it of one tower


@dataclass(frozen=True)
class Space:
    """The settings of one editor that are searched, and those that are given.

    Attributes:
        editor: Whose.
        given: Settings by name.
        searched: Name -> `Range`, or the values to choose from.
    """

    editor: Editor
    given: Mapping[str, Any]
    searched: Mapping[str, Range | tuple[Any, ...]]

    @classmethod
    def of(cls, editor: Editor, given: Mapping[str, Any], model: Model) -> Space:
        """What is left to search beside what is given by hand. Raises BadInput for a given setting that is wrong."""
        settings.make(editor, given)
        fixed = {name for whole, parts in BOTH_TOWERS.items() for name in (whole, *parts) if {whole, *parts} & {*given}}
        free = [f for f in fields(editor.Settings) if f.name not in {*given, *fixed}]
        found = {f.name: tried for f in free if (tried := _tried(editor, f, given, model))}
        return cls(editor, dict(given), found)

    def start(self) -> dict[str, Any]:
        """The editor's own defaults, of what is searched, where a search can begin with them."""
        defaults: dict[str, Any] = {f.name: f.default for f in fields(self.editor.Settings)}
        first = {}
        for name, tried in self.searched.items():
            value = defaults[name]
            if isinstance(tried, Range):
                value = tried.start if value is None else value
                if value is None or not tried.low <= value <= tried.high:
                    continue
            first[name] = value
        return first

    def distributions(self) -> dict[str, BaseDistribution]:
        """What Optuna draws each searched setting from."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        kinds = {f.name: f.metadata["kind"] for f in fields(self.editor.Settings)}
        found: dict[str, BaseDistribution] = {}
        for name, tried in self.searched.items():
            if not isinstance(tried, Range):
                found[name] = CategoricalDistribution(tried)
            elif kinds[name] is int:
                found[name] = IntDistribution(int(tried.low), int(tried.high), log=tried.log)
            else:
                found[name] = FloatDistribution(tried.low, tried.high, log=tried.log)
        return found

    def as_dict(self) -> dict[str, Any]:
        """For a fingerprint: what a search over it depends on."""
        tried = {n: [t.low, t.high, t.log] if isinstance(t, Range) else [*t] for n, t in self.searched.items()}
        return {"method": self.editor.name, "given": dict(self.given), "searched": tried}


def _tried(editor: Editor, declared: Field[Any], given: Mapping[str, Any], model: Model) -> Any:
    """What to try of one setting: a range, or at least two values that the editor takes."""
    search = declared.metadata.get("search")
    if search is None or isinstance(search, Range):
        return search
    values = dict.fromkeys(search(model) if callable(search) else search)
    taken = tuple(value for value in values if _takes(editor, {**given, declared.name: value}))
    return taken if len(taken) > 1 else None


def _takes(editor: Editor, chosen: Mapping[str, Any]) -> bool:
    try:
        settings.make(editor, chosen)
    except UwmError:
        return False
    return True
