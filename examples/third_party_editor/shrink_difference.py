"""An editor in closed form: embeddings lose a share of their part along the difference of unsafe and safe means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uwm.editing.changes import AddLowRank
from uwm.editing.editors import Pairs, Proposal, Statistics, random_control
from uwm.editing.settings import Range, setting
from uwm.errors import BadInput, InvalidResult
from uwm.weights import WeightId

if TYPE_CHECKING:  # torch is imported inside of methods only, so that `uwm edit --help` is quick
    from uwm import Model

EMBEDDINGS = "embeddings"


@dataclass(frozen=True)
class ShrinkSettings:
    """Each field is a setting of ``--set`` and of `uwm compare`, and is in uwm.json; `uwm tune` tries its `search`."""

    shrink: float = setting(
        0.5, float, "Share of the part along the difference that is removed  [default: 0.5]", search=Range(0.05, 1)
    )


class ShrinkDifference:
    """W ← (I − shrink · d dᵀ) W of a tower's projection W [dim, width], a change of rank one.

    d [dim] is the unit vector from the mean safe to the mean unsafe embedding of the tower. All embeddings e = W h of
    the tower become e − shrink · d (dᵀ e), so the distance of the means shrinks to 1 − shrink of what it was. A bias of
    the projection stays: it is in both means.
    """

    name = "shrink-difference"
    title = "shrinking the difference of means"
    source = "uwm's example of a third-party editor"
    Settings = ShrinkSettings

    def check(self, settings: ShrinkSettings) -> None:
        """Refuse a share outside 0–1. Raises BadInput."""
        if not 0 < settings.shrink <= 1:
            raise BadInput(f"--set shrink={settings.shrink}: expected a number over 0, at most 1")

    def measured(self, settings: ShrinkSettings) -> Any:
        """The statistics are the same whatever the share: the points of a curve share one pass."""
        return self.name

    def statistics(self, model: Model, pairs: Pairs, settings: ShrinkSettings) -> Statistics:
        """Embeddings of the towers that have pairs and a projection. Raises BadInput where there is none."""
        from uwm.statistics.embeddings import PairEmbeddings

        towers = tuple(t for t in pairs.modalities if WeightId(t, None, "proj") in model.tensors)
        if not towers:
            raise BadInput(f"--method {self.name}: no tower of the model has a projection and pairs")
        return Statistics(towers, {EMBEDDINGS: PairEmbeddings(normalised=False)})

    def edit(self, model: Model, statistics: Statistics, settings: ShrinkSettings, seed: int = 0) -> Proposal:
        """A change of every tower's projection. Raises InvalidResult where the means are equal."""
        changes, report = {}, {}
        for tower in statistics.towers:
            safe, unsafe = (side.double().mean(0) for side in statistics.reducers[EMBEDDINGS].sides(tower))  # [dim]
            distance = (unsafe - safe).norm()
            if distance == 0:
                raise InvalidResult(f"the {tower} tower: the safe and the unsafe mean are equal")
            d, projection = (unsafe - safe) / distance, WeightId(tower, None, "proj")
            right = model.stored(projection).double().T @ d  # [width]
            changes[projection] = AddLowRank.of(-settings.shrink * d[:, None], right[:, None])
            report[tower] = {"distance_of_means": float(distance)}
        return Proposal(dict(changes), report={"towers": report})

    def control(self, model: Model, statistics: Statistics, settings: ShrinkSettings, seed: int = 0) -> Proposal:
        """A random change of rank one and of equal norm."""
        proposal = self.edit(model, statistics, settings)
        return random_control(proposal, {name: tuple(model.parameter(name).shape) for name in proposal.changes}, seed)


EDITOR = ShrinkDifference()
