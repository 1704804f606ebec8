"""The editor `ablate`: see `ablate_maths`. Importing this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import BadInput
from ...weights import WeightId
from ..changes import AddLowRank, Change, SetEntries
from ..editors import Pairs, Proposal, Statistics
from ..settings import Range, setting
from .towers import (
    DEPTH_HELP,
    PADDED,
    POOLED,
    TOKENS,
    TOKENS_HELP,
    TOWERS,
    TOWERS_HELP,
    WEIGHT_HELP,
    bias_of,
    block_at,
    check_share,
    check_tokens,
    picked_rows,
    towers_of,
)  # fmt: skip

if TYPE_CHECKING:
    import torch

    from ...models import Model
    from ...statistics.residuals import ResidualMeans

MEANS = "means"
WRITERS = ("out_proj", "fc2")  # the matrices of a block that write to the residual stream


@dataclass(frozen=True)
class AblateSettings:
    """Settings of ablate."""

    towers: str = setting("both", str, TOWERS_HELP, TOWERS, TOWERS)
    weight: float = setting(1.0, float, WEIGHT_HELP, search=Range(0.1, 2))
    depth: float = setting(1.0, float, DEPTH_HELP, search=(0.5, 0.75, 1.0))
    tokens: str = setting(POOLED, str, TOKENS_HELP, TOKENS)
    first: float = setting(
        0.0, float, "Edit the blocks after this share of the depth  [default: 0, all]", search=(0.0, 0.25, 0.5, 0.75)
    )


class Ablate:
    """Editor: the matrices that write to the residual stream lose the direction from its safe to its unsafe mean
    (directional ablation, "abliteration"). The mean is taken at the pooled token, over all tokens where several are
    read, or at the tokens that are asked for."""

    name = "ablate"
    title = "directional ablation of the residual stream (abliteration)"
    source = "Arditi et al., arXiv 2406.11717, sections 2.3 and 4.1"
    Settings = AblateSettings

    def check(self, settings: AblateSettings) -> None:
        check_share("depth", settings.depth)
        if not 0 <= settings.first < 1:
            raise BadInput(f"--first {settings.first}: expected a number from 0, below 1")
        if not 0 < settings.weight <= 2:
            raise BadInput(f"--weight {settings.weight}: expected a number over 0, at most 2")

    def measured(self, settings: AblateSettings) -> Any:
        return self.name, settings.towers, settings.tokens, settings.depth

    def statistics(self, model: Model, pairs: Pairs, settings: AblateSettings) -> Statistics:
        from ...statistics.moments import counted_tokens
        from ...statistics.residuals import ResidualMeans

        check_tokens(settings.tokens, settings.towers)
        towers = towers_of(self.name, model, pairs, settings.towers)
        blocks = [(tower, block_at(model, tower, settings.depth)) for tower in towers]
        rows = picked_rows(model, settings.tokens, counted_tokens) or counted_tokens
        means = ResidualMeans(blocks, rows, settings.tokens == PADDED)
        return Statistics(towers, {MEANS: means})

    def edit(self, model: Model, statistics: Statistics, settings: AblateSettings, seed: int = 0) -> Proposal:
        from .ablate_maths import direction

        means: ResidualMeans = statistics.reducers[MEANS]
        units, report = {}, {}
        for tower in statistics.towers:
            block = block_at(model, tower, settings.depth)
            safe, unsafe = (means.means[tower, block, side].mean for side in (0, 1))
            units[tower] = direction(safe, unsafe)
            report[tower] = {"block": block, "step": float((unsafe - safe).norm() / safe.norm())}
        return Proposal(self._changes(model, units, settings), report={"towers": report})

    def control(self, model: Model, statistics: Statistics, settings: AblateSettings, seed: int = 0) -> Proposal:
        """The same edit along a random direction."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        units = {}
        for tower in statistics.towers:
            width = len(model.parameter(WeightId(tower, 0, "fc2")))
            drawn = torch.randn(width, generator=generator, dtype=torch.float64)
            units[tower] = drawn / drawn.norm()
        return Proposal(self._changes(model, units, settings))

    def _changes(
        self, model: Model, units: dict[str, torch.Tensor], settings: AblateSettings
    ) -> dict[WeightId, Change]:
        from .ablate_maths import ablate_bias, ablate_matrix

        changes: dict[WeightId, Change] = {}
        for tower, unit in units.items():
            count = model.depth(tower)
            chosen = range(int(settings.first * count), count)
            for name in (WeightId(tower, block, slot) for block in chosen for slot in WRITERS):
                changes[name] = AddLowRank.of(*ablate_matrix(model.stored(name), unit, settings.weight))
                if (bias := bias_of(model, name)) is not None:
                    values = ablate_bias(model.stored(bias), unit, settings.weight)
                    changes[bias] = SetEntries.of(range(len(values)), values)
        return changes


EDITOR = Ablate()
