"""The settings of an edit, and from them the edit with those beside it, from as few passes as can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .calibration import CalibrationSet, Preservation
from .editing import settings
from .editing.editors import DEFAULT, Editor, Proposal, Statistics, find_editor
from .editing.files import fit
from .editing.making import about, gather, make_patch, recipe_of
from .editing.patch import Patch
from .editing.stability import UntilStable
from .errors import BadInput, InvalidResult
from .inputs import Inputs
from .models import Model
from .statistics.batches import Progress
from .statistics.passes import Reducer, is_padded
from .tuning.defaults import OBJECTIVE, TRIALS


@dataclass(frozen=True)
class Recipe(Inputs):
    """Everything that decides an edit. The fields are the flags of `uwm edit`.

    Attributes:
        method: The editor's name, see `uwm.editing.editors.find_editors`; None for uwm, with `max_loss` the best.
        purpose: What the edit is for, see `uwm.editing.purposes`; it decides settings that are not given.
        settings: Its settings by name; what is not given the editor decides, or with `max_loss` the search.
        max_loss: What may be lost, see `uwm.expressions.parse_max_loss`; method and settings are then chosen by
            cross-validation on the calibration pairs.
        objective: What is made best within it, see `uwm.expressions.parse_objective`.
        trials: How many edits are tried for that.
        until_stable: Use only so many pairs that the edit from half of them agrees so well with that from all of them,
            see `uwm.editing.stability`; None for all pairs.
        preserve: Safe captions and images without partners, see `uwm.calibration.read_preservation`.
        beside: Further methods with their own settings, fitted to the same pairs and measured beside the edit.
        also_export: Write a CLIP in the other layout too, ``hf`` or ``open_clip``.
        again: Edit a checkpoint that uwm has edited already.
        require_towers: Write nothing unless these were edited: ``both``, ``text`` or ``vision``; None asks for none.
        cache: Keep the work in the user's cache while it lasts, so that the same run goes on if this one is stopped.
    """

    method: str | None = None
    purpose: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    max_loss: str | None = None
    objective: str = OBJECTIVE
    trials: int = TRIALS
    until_stable: float | None = None
    preserve: str | None = None
    beside: tuple[str, ...] = ()
    also_export: str | None = None
    again: bool = False
    require_towers: str | None = None
    cache: bool = True


@dataclass(frozen=True)
class Edit:
    """One editor on its way: what the pass gathers for it, and the patches that came of it.

    Attributes:
        editor, settings: What edits, and how.
        statistics: What it asked of the pass.
        proposal: What it proposes.
        patch: The edit, fitted to the model's checkpoint.
        control: The random control of equal kind and size.
    """

    editor: Editor
    settings: Any
    statistics: Statistics
    proposal: Proposal
    patch: Patch
    control: Patch


@dataclass(frozen=True)
class Fitted:
    """The edits of a recipe.

    Attributes:
        edits: By the editors' names, the recipe's own first.
        told: What a user should know.
        calibration: The pairs that they learnt from.
        stable: How these were found to be enough; None where all were used.
    """

    edits: dict[str, Edit]
    told: tuple[str, ...]
    calibration: CalibrationSet
    stable: UntilStable | None = None


def make_edits(
    recipe: Recipe,
    model: Model,
    calibration: CalibrationSet,
    progress: Progress | None = None,
    preserve: Preservation | None = None,
    also: Sequence[Reducer] = (),
) -> Fitted:
    """The recipe's edit by its method and those beside it, from as few passes as can.

    Args:
        also: Further reducers of the first pass.

    Raises:
        BadInput: The recipe's own method cannot work with the model or the set, or has no use for `preserve`.
    """
    told, own = [], recipe.method or DEFAULT
    stable = _until_stable(recipe, model, own)
    pairs = about(calibration) if stable is None else stable.pairs(calibration)
    asked: dict[str, tuple[Editor, Any, Statistics]] = {}
    for name in dict.fromkeys((own, *recipe.beside)):
        editor = find_editor(name)
        chosen = settings.make(editor, recipe.settings if name == own else {})
        try:
            asked[name] = editor, chosen, editor.statistics(model, pairs, chosen)
        except BadInput:
            if name == own:
                raise  # a method beside it that has no use for this model or set is left out
    if stable is not None and asked[own][2].joint:
        raise BadInput(f"--until-stable: {own} takes the gradients of all pairs at once; use --limit")
    passed: dict[str, Any] = {"batch_size": recipe.batch_size, "workers": recipe.workers, "progress": progress}
    for group in _passes([statistics for _, _, statistics in asked.values()], preserve is not None):
        others = [reducer for statistics in group[1:] for reducer in statistics.reducers.values()]
        kept = preserve if group[0].preserve or group[0] is asked[own][2] else None
        until = stable.parts if stable is not None and group[0] is asked[own][2] else None
        passed |= {"also": [*others, *also], "preserve": kept, "parts": until}
        calibration = gather(model, group[0], calibration, **passed)
        for statistics in group[1:]:
            statistics.pairs = group[0].pairs
        also = ()
    edits = {}
    for name, parts in asked.items():
        try:
            edits[name] = _edited(recipe, model, calibration, *parts)
        except (BadInput, InvalidResult) as error:  # some see only now that they have no use for this model
            if name == own:
                raise
            told.append(f"{name} is not measured beside the edit: {error}")
    return Fitted(edits, (*told, *model.idle(edits[own].patch.changes)), calibration, stable)


def _until_stable(recipe: Recipe, model: Model, own: str) -> UntilStable | None:
    if recipe.until_stable is None:
        return None
    editor = find_editor(own)
    return UntilStable(model, editor, settings.make(editor, recipe.settings), recipe.seed, recipe.until_stable)


def _passes(asked: list[Statistics], preserving: bool) -> list[list[Statistics]]:
    """Statistics that one pass can gather together: of the same towers, pair by pair; the recipe's own come first."""
    groups: dict[Any, list[Statistics]] = {}
    for number, statistics in enumerate(asked):
        apart = statistics.joint or is_padded(statistics.reducers.values())
        alone = apart or (preserving and bool(statistics.preserve))
        groups.setdefault(number if alone else statistics.towers, []).append(statistics)
    return [*groups.values()]


def _edited(
    recipe: Recipe, model: Model, calibration: CalibrationSet, editor: Editor, chosen: Any, statistics: Statistics
) -> Edit:
    """What an editor makes of fed statistics."""
    proposal = editor.edit(model, statistics, chosen, recipe.seed)
    about = recipe_of(editor, chosen, statistics, proposal, calibration.fingerprint(), recipe.seed)
    control = editor.control(model, statistics, chosen, recipe.seed)
    drawn = {"method": "random", "seed": recipe.seed}
    assert model.checkpoint is not None
    return Edit(
        editor,
        chosen,
        statistics,
        proposal,
        fit(model.checkpoint, make_patch(model, proposal, about))[0],
        make_patch(model, replace(control, settings={}), drawn),
    )
