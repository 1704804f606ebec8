"""The editor `null-space`: see `null_space_maths`. Importing this needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...errors import BadInput
from ...weights import WeightId
from ..changes import AddLowRank, Change, SetEntries
from ..editors import Pairs, Proposal, Statistics
from ..settings import Range, setting
from .towers import RANK_HELP, TOWERS, TOWERS_HELP, WEIGHT_HELP, bias_of, towers_of

if TYPE_CHECKING:
    import torch

    from ...models import Model
    from ...statistics.embeddings import PairEmbeddings

EMBEDDINGS = "embeddings"
RANK = 5


@dataclass(frozen=True)
class NullSpaceSettings:
    """Settings of null-space."""

    towers: str = setting("vision", str, TOWERS_HELP, TOWERS, TOWERS)
    weight: float = setting(1.0, float, WEIGHT_HELP, search=Range(0.1, 2))
    rank: int | None = setting(None, int, RANK_HELP, search=Range(1, 32, log=True, start=RANK))
    retain: int = setting(
        0, int, "Leading directions of safe captions that stay exactly  [default: 0]", search=Range(0, 32)
    )


@dataclass
class NullSpaceStatistics(Statistics):
    """Embeddings of captions.

    Attributes:
        edited: The towers whose projection is changed.
        spans: Side -> all directions of its captions, once they were asked for: of any rank, a basis is the first.
    """

    edited: tuple[str, ...] = ()
    spans: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)

    def span(self, side: str, rows: Callable[[], torch.Tensor], rank: int) -> torch.Tensor:
        """The basis [dim, up to rank] of a side's captions, rows [n, dim]."""
        from .null_space_maths import leading, whole_span

        if side not in self.spans:
            self.spans[side] = whole_span(rows())
        return leading(self.spans[side], rank)


class NullSpace:
    """Editor: the last projection loses the span of unsafe caption embeddings (data-free class unlearning)."""

    name = "null-space"
    title = "null-space projection of unsafe captions"
    source = "Mishra et al., arXiv 2512.14137; the retained span in a form of our own"
    Settings = NullSpaceSettings

    def check(self, settings: NullSpaceSettings) -> None:
        if not 0 < settings.weight <= 2:
            raise BadInput(f"--weight {settings.weight}: expected a number over 0, at most 2")
        if (settings.rank is not None and settings.rank < 1) or settings.retain < 0:
            raise BadInput(f"--rank {settings.rank} --retain {settings.retain}: expected from 1 and from 0")

    def measured(self, settings: NullSpaceSettings) -> Any:
        return self.name, settings.towers

    def statistics(self, model: Model, pairs: Pairs, settings: NullSpaceSettings) -> NullSpaceStatistics:
        from ...statistics.embeddings import PairEmbeddings

        for lack, there in ((model.lacks("text"), model.editable), ("the set has no text side", pairs.modalities)):
            if "text" not in there:
                raise BadInput(f"--method {self.name} works from unsafe captions, and {lack}")
        edited = towers_of(self.name, model, Pairs(), settings.towers)
        for tower in edited:
            if _projection(tower) not in model.tensors:
                raise BadInput(f"--method {self.name}: the {tower} tower has no projection to edit")
        return NullSpaceStatistics(
            ("text",), {EMBEDDINGS: PairEmbeddings()}, preserve={EMBEDDINGS: PairEmbeddings()}, edited=edited
        )

    def edit(
        self, model: Model, statistics: NullSpaceStatistics, settings: NullSpaceSettings, seed: int = 0
    ) -> Proposal:
        import torch

        from .null_space_maths import without

        found: PairEmbeddings = statistics.reducers[EMBEDDINGS]
        kept: PairEmbeddings = statistics.preserve[EMBEDDINGS]
        safe, unsafe = found.sides("text")
        basis = statistics.span("unsafe", lambda: unsafe, settings.rank or RANK)
        if settings.retain:
            retained = statistics.span("safe", lambda: torch.cat([safe, *kept.sides("text")]), settings.retain)
            basis = without(basis, retained)
        report = {"rank": basis.shape[1]} | {
            f"{name}_energy": float((side.double() @ basis).square().sum() / len(side))
            for name, side in (("safe", safe), ("unsafe", unsafe))
        }
        settled = {"rank": settings.rank or RANK}
        return Proposal(self._changes(model, statistics, basis, settings), {}, settled, {"captions": report})

    def control(
        self, model: Model, statistics: NullSpaceStatistics, settings: NullSpaceSettings, seed: int = 0
    ) -> Proposal:
        """The same edit with a random span of equal rank."""
        import torch

        rank = self.edit(model, statistics, settings).report["captions"]["rank"]
        width = len(model.parameter(_projection(statistics.edited[0])))
        drawn = torch.randn(width, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return Proposal(self._changes(model, statistics, torch.linalg.qr(drawn).Q, settings))

    def _changes(
        self, model: Model, statistics: NullSpaceStatistics, basis: torch.Tensor, settings: NullSpaceSettings
    ) -> dict[WeightId, Change]:
        from .null_space_maths import project_out, project_out_bias

        changes: dict[WeightId, Change] = {}
        for name in map(_projection, statistics.edited):
            changes[name] = AddLowRank.of(*project_out(model.stored(name), basis, settings.weight))
            if (bias := bias_of(model, name)) is not None:
                values = project_out_bias(model.stored(bias), basis, settings.weight)
                changes[bias] = SetEntries.of(range(len(values)), values)
        return changes


EDITOR = NullSpace()


def _projection(tower: str) -> WeightId:
    return WeightId(tower, None, "proj")
