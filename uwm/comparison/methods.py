"""What a user may compare: methods written as stages joined by ``+``, read and checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

from ..backends.protocol import Backend, TrainingSettings
from ..editing import settings
from ..editing.editors import Editor, editor_names, find_editor, find_editors
from ..errors import BadInput

NONE = "none"
CONTROL = "control"  # a word among an edit's settings: the random control of equal kind and size


@dataclass(frozen=True)
class Edit:
    """An edit without training.

    Attributes:
        method: The editor's name.
        settings: Its settings that were given, sorted by name.
        control: The control of equal kind and size in its place.
    """

    method: str = "uwm"
    settings: tuple[tuple[str, Any], ...] = ()
    control: bool = False

    @property
    def editor(self) -> Editor:
        """What edits."""
        return find_editor(self.method)

    def made(self) -> Any:
        """The editor's own settings."""
        return settings.make(self.editor, dict(self.settings))

    def measured(self) -> Any:
        """What decides the statistics: edits that are equal in this share them."""
        return self.editor.measured(self.made())

    def has(self, name: str) -> bool:
        """Whether the editor has a setting of this name."""
        return name in {f.name for f in fields(self.editor.Settings)}

    def given(self, name: str) -> bool:
        """Whether a setting, or the same of one tower, was given."""
        return any(key in (name, f"text_{name}", f"vision_{name}") for key, _ in self.settings)

    def at(self, name: str, value: Any) -> Edit:
        """The same with another value of a setting."""
        return replace(self, settings=tuple(sorted({**dict(self.settings), name: value}.items())))


@dataclass(frozen=True)
class Train:
    """A fine-tuning backend, with what differs from its paper's settings."""

    backend: str
    changes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Given:
    """A checkpoint that is there already."""

    reference: str


Stage: TypeAlias = Edit | Train | Given


@dataclass(frozen=True)
class Method:
    """A row, or a curve, of a comparison: stages applied one after another; none for the unedited model."""

    label: str
    stages: tuple[Stage, ...]

    @property
    def trains(self) -> bool:
        """Whether a stage is a fine-tuning backend."""
        return any(isinstance(stage, Train) for stage in self.stages)


def parse_methods(
    texts: Iterable[str],
    backends: Mapping[str, Backend],
    default: Mapping[str, Any] | None = None,
    training: Iterable[str] = (),
) -> list[Method]:
    """Methods as the command line has them; the unedited model is put before them.

    Args:
        texts: Each one or more methods with commas between. A method is stages joined by ``+``; a stage is a name with
            settings after colons, ``uwm:mass=0.1`` or ``uwm:difference:top-fraction``; the first stage may be a
            checkpoint, ``LABEL=path/or/reference``.
        backends: Those that can be asked for.
        default: Settings of edits that have them and do not say otherwise.
        training: Likewise of fine-tuning: settings such as ``epochs=5``.

    Raises:
        BadInput: Of all methods that cannot be read, and of names that occur twice.
    """
    written = [part.strip() for text in texts for part in text.split(",") if part.strip()]
    read = _Reader(backends, editor_names(), default or {}, tuple(training))
    found, wrong = [Method(NONE, ())], []
    for text in written:
        try:
            found += [] if text == NONE else [read.method(text)]
        except BadInput as error:
            wrong.append(str(error))
    labels = [method.label for method in found]
    wrong += [f"{label!r} is there twice" for label in dict.fromkeys(labels) if labels.count(label) > 1]
    if wrong:
        raise BadInput(f"--methods: {'; '.join(wrong)}. {known(backends)}")
    if len(found) == 1 and not written:
        raise BadInput(f"--methods: nothing to compare. {known(backends)}")
    return found


def known(backends: Mapping[str, Backend]) -> str:
    """One line of all that may be asked for; the editors of other distributions by name only, not imported."""
    ours = find_editors(only="uwm")
    edits = "; ".join(
        f"{name} ({', '.join(_spellings(ours[name]))})" if name in ours else name for name in editor_names()
    )
    return (
        f"There are {NONE}, edits with their settings: {edits}; of each edit its {CONTROL}; fine-tuning: "
        f"{', '.join(backends)} ({', '.join(f'{name}=' for name in TRAIN_SETTINGS)}); and LABEL=CHECKPOINT"
    )


def _spellings(editor: Editor) -> list[str]:
    """How the settings of an edit are written."""
    own = fields(editor.Settings)
    words = [word for f in own for word in f.metadata["choices"]]
    return [*words, *(f"{settings.flag(f.name)}=" for f in own if not f.metadata["choices"])]


@dataclass(frozen=True)
class _Reader:
    """Reads one method after another; what is wrong with one is a BadInput without the flag's name."""

    backends: Mapping[str, Backend]
    editors: list[str]
    default: Mapping[str, Any]
    training: tuple[str, ...]

    def method(self, text: str) -> Method:
        parts = [part.strip() for part in text.split("+")]
        label, equals, reference = parts[0].partition("=")
        if not equals or ":" in label:
            return Method(text, tuple(self._stage(part) for part in parts))
        count = next((i for i in range(1, len(parts)) if all(map(self._is_stage, parts[i:]))), len(parts))
        reference = "+".join((reference, *parts[1:count]))  # a path may hold a +
        if not label or label == NONE or not reference:
            raise BadInput(f"{text!r}: expected LABEL=CHECKPOINT")
        stages = tuple(self._stage(part) for part in parts[count:])
        return Method("+".join((label, *parts[count:])), (Given(reference), *stages))

    def _is_stage(self, part: str) -> bool:
        return part.partition(":")[0] in (*self.editors, *self.backends)

    def _stage(self, text: str) -> Edit | Train:
        name, *given = text.split(":")
        if name in self.backends:
            changes = _training(name, [*self.training, *given], self.backends[name].settings)
            return Train(name, tuple(sorted(changes.items())))
        if name in self.editors:
            return self._edit(name, text, given)
        raise BadInput(f"{text!r}: no method is called {name!r}")

    def _edit(self, name: str, text: str, given: Iterable[str]) -> Edit:
        """An edit with its settings: bare words for choices and the control, the others with a value."""
        editor = find_editor(name)
        own = {f.name for f in fields(editor.Settings)}
        words = [word for word in given if word != CONTROL]
        try:
            chosen = {key: value for key, value in self.default.items() if key in own}
            chosen |= settings.spelt(words, [editor.Settings])
            made = settings.make(editor, chosen)
        except BadInput as error:
            raise BadInput(f"{text!r}: {error}") from None
        kept = tuple((key, getattr(made, key)) for key in sorted(chosen))
        return Edit(name, kept, CONTROL in given)


TRAIN_SETTINGS = tuple(
    f.name.replace("_", "-") for f in fields(TrainingSettings) if f.name not in ("weights", "targets")
)


def _training(name: str, settings: Iterable[str], own: TrainingSettings) -> dict[str, Any]:
    """What differs from the backend's own settings, each of the type that the backend has there."""
    changes: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if key not in TRAIN_SETTINGS or not equals:
            raise BadInput(f"'{name}': no setting of fine-tuning is called {setting!r}")
        kind = type(getattr(own, key.replace("-", "_")))
        try:
            changes[key.replace("-", "_")] = kind(value)
        except ValueError:
            raise BadInput(f"'{name}:{setting}': expected {kind.__name__}") from None
    return changes
