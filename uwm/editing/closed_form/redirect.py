"""The editor `redirect`: see `redirect_maths`. Importing this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import BadInput, InvalidResult
from ...weights import WeightId
from ..changes import AddLowRank, Change
from ..editors import Pairs, Proposal, Statistics, random_control
from ..settings import Range, setting
from .towers import (
    DEPTH_HELP,
    PADDED,
    POOLED,
    RANK_HELP,
    TOKENS,
    TOKENS_HELP,
    TOWERS,
    TOWERS_HELP,
    block_at,
    check_share,
    check_tokens,
    picked_rows,
    towers_of,
)

if TYPE_CHECKING:
    from ...models import Model
    from ...statistics.moments import Moments
    from ...statistics.residuals import ResidualShifts

SHIFTS = "shifts"
RANK = 64


@dataclass(frozen=True)
class RedirectSettings:
    """Settings of redirect."""

    towers: str = setting("both", str, TOWERS_HELP, TOWERS)
    tokens: str = setting(POOLED, str, TOKENS_HELP, TOKENS)
    depth: float = setting(1.0, float, DEPTH_HELP)
    keep: float = setting(4.0, float, "λ: weight of the safe side  [default: 4]", search=Range(0.5, 256, log=True))
    ridge: float = setting(
        0.03, float, "ρ, by the mean square of an input  [default: 0.03]", search=Range(0.003, 0.3, log=True)
    )
    rank: int | None = setting(None, int, RANK_HELP, search=Range(1, 64, log=True, start=RANK))


class Redirect:
    """Editor: one fc2 of each tower writes the safe partner's residual stream for unsafe inputs (ridge regression)."""

    name = "redirect"
    title = "redirection of the residual stream to the safe partner"
    source = "ours; uwm.editing.closed_form.redirect_maths"
    Settings = RedirectSettings

    def check(self, settings: RedirectSettings) -> None:
        check_share("depth", settings.depth)
        if settings.keep < 0 or settings.ridge <= 0:
            raise BadInput(f"--keep {settings.keep} --ridge {settings.ridge}: expected λ from 0 and ρ over 0")
        if settings.rank is not None and settings.rank < 1:
            raise BadInput(f"--rank {settings.rank}: expected at least 1")

    def measured(self, settings: RedirectSettings) -> Any:
        return self.name, settings.towers, settings.tokens, settings.depth

    def statistics(self, model: Model, pairs: Pairs, settings: RedirectSettings) -> Statistics:
        from ...statistics.residuals import ResidualShifts

        check_tokens(settings.tokens, settings.towers)
        towers = towers_of(self.name, model, pairs, settings.towers)
        weights = [WeightId(tower, block_at(model, tower, settings.depth), "fc2") for tower in towers]
        rows = picked_rows(model, settings.tokens)
        shifts, kept = (ResidualShifts(weights, rows, settings.tokens == PADDED) for _ in range(2))
        return Statistics(towers, {SHIFTS: shifts}, preserve={SHIFTS: kept})

    def edit(self, model: Model, statistics: Statistics, settings: RedirectSettings, seed: int = 0) -> Proposal:
        from .redirect_maths import low_rank, normal_matrix, redirection

        shifts: ResidualShifts = statistics.reducers[SHIFTS]
        kept: ResidualShifts = statistics.preserve[SHIFTS]
        changes: dict[WeightId, Change] = {}
        report: dict[str, dict[str, Any]] = {}
        for name, unsafe in shifts.unsafe.items():
            gram = unsafe.second / unsafe.count
            safe = _mean_gram(shifts.safe[name], kept.safe[name])
            ridge = settings.ridge * float(gram.trace() / len(gram))
            if not ridge > 0:
                raise InvalidResult(f"{name}: all unsafe inputs are zero; there is nothing to redirect")
            normal = normal_matrix(gram, safe, keep=settings.keep, ridge=ridge)
            whole = redirection(normal, unsafe.cross / unsafe.count)
            left, right, gain = low_rank(whole, normal, settings.rank or RANK)
            changes[name] = AddLowRank.of(left, right)
            report[name.tower] = {"block": name.block, "rank": left.shape[1], "gain_kept": gain}
        notes = {name: {"rank": report[name.tower]["rank"]} for name in changes}
        return Proposal(changes, notes, {"rank": settings.rank or RANK}, {"towers": report})

    def control(self, model: Model, statistics: Statistics, settings: RedirectSettings, seed: int = 0) -> Proposal:
        """Random matrices of equal rank and norm."""
        proposal = self.edit(model, statistics, settings)
        shapes = {name: tuple(model.parameter(name).shape) for name in proposal.changes}
        return random_control(proposal, shapes, seed)


EDITOR = Redirect()


def _mean_gram(*parts: Moments) -> Any:
    """The mean of a aᵀ over all rows of the safe side and the preservation set, [in, in]."""
    there = [part for part in parts if part.count]
    return sum(part.second for part in there) / sum(part.count for part in there)
