"""What a user may compare: methods written as stages joined by ``+``, read and checked before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

from ..backends.protocol import Backend, TrainingSettings
from ..editing.entries.methods import METHODS
from ..editing.entries.scoring import TEXT_LAYERS, VISION_LAYERS, check_method
from ..editing.entries.select import check_settings
from ..editing.entries.selection import RULES
from ..errors import BadInput

NONE = "none"
CONTROLS = ("random", "magnitude")
VARIANTS = tuple(dict.fromkeys(name for method in METHODS.values() for name in method.variants))


@dataclass(frozen=True)
class Edit:
    """An edit without training.

    Attributes:
        method, variant, text_layers, vision_layers: What scores, as in `uwm.score`.
        mass, text_mass, vision_mass, alpha, rule: What is chosen and what becomes of it, as in `uwm.select`.
        control: ``random`` or ``magnitude``: as many entries of every weight as that would choose, chosen like this.
    """

    method: str = "uwm"
    variant: str | None = None
    text_layers: str = TEXT_LAYERS
    vision_layers: str = VISION_LAYERS
    mass: float | None = None
    text_mass: float | None = None
    vision_mass: float | None = None
    alpha: float | None = None
    rule: str | None = None
    control: str = ""

    def scoring(self) -> Edit:
        """Only what decides the scores: edits that are equal in this share them."""
        return Edit(self.method, self.variant, self.text_layers, self.vision_layers)

    def at(self, mass: float) -> Edit:
        """The same with another τ for both towers."""
        return replace(self, mass=mass)


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
    texts: Iterable[str], backends: Mapping[str, Backend], default: Edit | None = None, training: Iterable[str] = ()
) -> list[Method]:
    """Methods as the command line has them; the unedited model is put before them.

    Args:
        texts: Each one or more methods with commas between. A method is stages joined by ``+``; a stage is a name with
            settings after colons, ``uwm:mass=0.1`` or ``uwm:difference:top-fraction``; the first stage may be a
            checkpoint, ``LABEL=path/or/reference``.
        backends: Those that can be asked for.
        default: What an edit has where it does not say otherwise.
        training: Likewise of fine-tuning: settings such as ``epochs=5``.

    Raises:
        BadInput: Of all methods that cannot be read, and of names that occur twice.
    """
    written = [part.strip() for text in texts for part in text.split(",") if part.strip()]
    read = _Reader(backends, default or Edit(), tuple(training))
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
    """One line of all that may be asked for."""
    return (
        f"There are {', '.join((NONE, *METHODS, *CONTROLS, *backends))}, and LABEL=CHECKPOINT; settings of edits: "
        f"{', '.join((*VARIANTS, *RULES, *(f'{name}=' for name in EDIT_SETTINGS)))}; of fine-tuning: "
        f"{', '.join(f'{name}=' for name in TRAIN_SETTINGS)}"
    )


@dataclass(frozen=True)
class _Reader:
    """Reads one method after another; what is wrong with one is a BadInput without the flag's name."""

    backends: Mapping[str, Backend]
    default: Edit
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
        return part.partition(":")[0] in (*METHODS, *CONTROLS, *self.backends)

    def _stage(self, text: str) -> Edit | Train:
        name, *settings = text.split(":")
        if name in self.backends:
            changes = _training(name, [*self.training, *settings], self.backends[name].settings)
            return Train(name, tuple(sorted(changes.items())))
        if name in CONTROLS:
            return _edit(replace(self.default, control=name), text, settings)
        if name in METHODS:
            return _edit(replace(self.default, method=name), text, settings)
        raise BadInput(f"{text!r}: no method is called {name!r}")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadInput(f"{text!r} is no number") from None


EDIT_SETTINGS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("mass", "text-mass", "vision-mass", "alpha"), _number),
    **dict.fromkeys(("text-layers", "vision-layers"), str),
}


def _edit(edit: Edit, text: str, settings: Iterable[str]) -> Edit:
    """An edit with its settings: bare words for variants and rules, the others with a value."""
    for setting in settings:
        name, equals, value = setting.partition("=")
        if name in VARIANTS and not equals:
            edit = replace(edit, variant=name)
        elif name in RULES and not equals:
            edit = replace(edit, rule=name)
        elif name in EDIT_SETTINGS and equals:
            edit = replace(edit, **{name.replace("-", "_"): EDIT_SETTINGS[name](value)})
        else:
            raise BadInput(f"{text!r}: no setting of an edit is called {setting!r}")
    check_method(edit.method, edit.variant)
    check_settings(alpha=edit.alpha, masses=(edit.mass, edit.text_mass, edit.vision_mass), rule=edit.rule)
    return edit


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
