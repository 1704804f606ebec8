"""Which towers of a model an edit changed, why another one stayed as it was, and what CI may ask of that."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ..calibration import CalibrationSet
from ..calibration.lacking import lacking
from ..errors import RequirementNotMet
from ..manifest import TowerFacts
from ..models import Model
from ..weights import WeightId

TOWERS = ("text", "vision")
ASKED = {"both": TOWERS, "text": ("text",), "vision": ("vision",)}  # what --require-towers takes


def tower_facts(model: Model, calibration: CalibrationSet, changed: Iterable[WeightId]) -> TowerFacts:
    """Which towers were edited, and why another one of the model was not, for uwm.json.

    Args:
        model: Unedited.
        calibration: The pairs that the edit learnt from.
        changed: The tensors that it changes.
    """
    edited = {weight.modality for weight in changed}
    left = [tower for tower in model.modalities if tower not in edited]
    return {
        "edited": [tower for tower in TOWERS if tower in edited],
        "not_edited": {tower: lacking(calibration, tower) or _other(model, tower) for tower in left},
    }


def _other(model: Model, tower: str) -> str:
    """Why a tower that has pairs was not edited."""
    if tower not in model.editable:
        return model.lacks(tower)
    return "method and settings leave it as it is"


def demand_pairs(asked: str | None, calibration: CalibrationSet) -> None:
    """Refuse a set that cannot edit the towers that are asked for, before a model is loaded.

    Raises:
        RequirementNotMet: No pair has what a tower needs.
    """
    for tower in ASKED[asked] if asked else ():
        if why := lacking(calibration, tower):
            raise RequirementNotMet(f"--require-towers {asked}: the {tower} tower would not be edited: {why}")


def demand_towers(asked: str | None, facts: TowerFacts, modalities: Collection[str]) -> None:
    """Refuse an edit that left out a tower that is asked for, before anything is written.

    Raises:
        RequirementNotMet: A tower was not edited, or the model does not have it.
    """
    for tower in ASKED[asked] if asked else ():
        if tower not in facts["edited"]:
            has = tower in modalities
            why = facts["not_edited"].get(tower, "") if has else f"the model has no {tower} side"
            raise RequirementNotMet(f"--require-towers {asked}: the {tower} tower was not edited: {why}")
