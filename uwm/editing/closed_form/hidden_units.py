"""The editor `hidden-units`: see `hidden_units_maths`. Importing this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import BadInput, InvalidResult
from ...weights import WeightId
from ..changes import Scale
from ..editors import Pairs, Proposal, Statistics
from ..settings import Range, setting
from .towers import TOWERS, TOWERS_HELP, check_share, towers_of

if TYPE_CHECKING:
    import torch

    from ...models import Model
    from ...statistics.pooled import PooledInputs

INPUTS = "inputs"


@dataclass(frozen=True)
class HiddenUnitsSettings:
    """Settings of hidden-units."""

    towers: str = setting("both", str, TOWERS_HELP, TOWERS, TOWERS)
    top: float = setting(
        0.05, float, "Share of the hidden units that are scaled  [default: 0.05]", search=Range(0.002, 0.3, log=True)
    )
    factor: float = setting(0.0, float, "What they write is multiplied by this  [default: 0]", search=Range(-2, 0.9))


class HiddenUnits:
    """Editor: the hidden units of the last MLP that answer most to the unsafe side are scaled down."""

    name = "hidden-units"
    title = "hidden units scaled by paired effect size"
    source = "a common practice; effect size d_z of Cohen 1988, section 2.3.5"
    Settings = HiddenUnitsSettings

    def check(self, settings: HiddenUnitsSettings) -> None:
        check_share("top", settings.top)
        if abs(settings.factor) > 1e4:
            raise BadInput(f"--factor {settings.factor}: expected a number such as 0 or -1")
        if settings.factor == 1:
            raise InvalidResult("--factor 1 changes nothing")

    def measured(self, settings: HiddenUnitsSettings) -> Any:
        return self.name, settings.towers

    def statistics(self, model: Model, pairs: Pairs, settings: HiddenUnitsSettings) -> Statistics:
        from ...statistics.pooled import PooledInputs

        towers = towers_of(self.name, model, pairs, settings.towers)
        if unread := {weight.tower: why for weight, why in model.unread.items() if weight.tower in towers}:
            towers = tuple(tower for tower in towers if tower not in unread)
            if not towers:
                raise BadInput(f"--method hidden-units: the last MLP is never read: {', '.join({*unread.values()})}")
        return Statistics(towers, {INPUTS: PooledInputs(model, [_second(model, tower) for tower in towers])})

    def edit(self, model: Model, statistics: Statistics, settings: HiddenUnitsSettings, seed: int = 0) -> Proposal:
        from .hidden_units_maths import paired_effect_sizes, top_units

        inputs: PooledInputs = statistics.reducers[INPUTS]
        units, report = {}, {}
        for tower in statistics.towers:
            name = _second(model, tower)
            effects = paired_effect_sizes(*inputs.sides(name))
            units[name] = top_units(effects, settings.top)
            least, most = effects[units[name]].min(), effects[units[name]].max()
            report[tower] = {"units": len(units[name]), "least_effect": float(least), "greatest_effect": float(most)}
        return _proposal(model, units, settings, {"towers": report})

    def control(self, model: Model, statistics: Statistics, settings: HiddenUnitsSettings, seed: int = 0) -> Proposal:
        """As many units of the same MLPs, drawn at random."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        units = {}
        for name, note in self.edit(model, statistics, settings).notes.items():
            hidden = model.parameter(name).shape[1]
            units[name] = torch.randperm(hidden, generator=generator)[: note["units"]].sort().values
        return _proposal(model, units, settings, {})


EDITOR = HiddenUnits()


def _second(model: Model, tower: str) -> WeightId:
    """The second matrix of the last MLP, whose columns the hidden units write with."""
    pair = model.last_mlp(tower)
    if pair is None:
        raise BadInput(f"--method hidden-units: the {tower} tower has no MLP at a pooled token")
    return pair[1]


def _proposal(
    model: Model, units: dict[WeightId, torch.Tensor], settings: HiddenUnitsSettings, report: dict[str, Any]
) -> Proposal:
    from .hidden_units_maths import column_entries

    changes: dict[WeightId, Any] = {}
    for name, chosen in units.items():
        out, hidden = model.parameter(name).shape
        changes[name] = Scale(column_entries(chosen, out, hidden).numpy(), settings.factor)
    notes: dict[WeightId, dict[str, Any]] = {name: {"units": len(chosen)} for name, chosen in units.items()}
    return Proposal(changes, notes, report=report)
