"""The residual stream after blocks: its means, and where the closed forms want to move it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import BadInput
from ..weights import WeightId
from .moments import Mean, Moments, Rows, Spread, Total, counted_tokens, to_double
from .passes import RESIDUAL, SAFE, UNSAFE, Part, Shared


class ResidualMeans(Shared):
    """Reducer: the mean residual stream after some blocks, each side for itself (directional ablation).

    Args:
        blocks: (tower, number) of each block.
        rows: Which tokens count: `counted_tokens`, or `uwm.statistics.pooled.PooledToken` of a model.
        padded: Whether captions are padded as diffusion models read them.

    Attributes:
        means: (tower, block, side) -> `Mean`; a side that was never seen has count 0.
    """

    needs_embeddings = False
    SUMS = ("means",)

    def __init__(self, blocks: Sequence[tuple[str, int]], rows: Rows = counted_tokens, padded: bool = False) -> None:
        self.padded = padded
        self._blocks = blocks
        self._rows = rows
        self.means = {(*block, side): Mean() for block in blocks for side in (0, 1)}

    def layers(self, tower: str) -> Sequence[WeightId]:
        """The residual streams of a tower's blocks."""
        return [WeightId(name, block, RESIDUAL) for name, block in self._blocks if name == tower]

    def take(self, weight: WeightId, side: int, x: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Add the rows that count."""
        assert weight.block is not None
        self.give(((weight.tower, weight.block, side), Total.of(self._rows(weight, x, mask))))

    def update(self, part: Part) -> None:
        """Nothing is left to do."""

    def join(self, item: tuple[tuple[str, int, int], Total]) -> None:
        """Add rows of one side of a block."""
        place, rows = item
        self.means[place].join(rows)


class ResidualShifts(Shared):
    """Reducer: what redirection needs (method "redirect"), the Gram matrices of a matrix's inputs on both sides, and
    of the unsafe ones the cross moments with the step r̂ − r from their own residual stream to the safe partner's.

    The residual stream is that after the block of the matrix. Where all tokens count, the k-th counted token of the
    unsafe side goes to the k-th of the safe side, the last to the last, and one past the partner's last to that last.
    Safe inputs without partners (a preservation set) add to the safe side only.

    Args:
        weights: Matrices of blocks.
        rows: Which tokens count, the same number on both sides: `uwm.statistics.pooled.PooledToken` of a model; None
            for all tokens that the mask counts.
        padded: Whether captions are padded as diffusion models read them.

    Attributes:
        safe: Matrix -> moments of the inputs of the safe side.
        unsafe: Matrix -> moments of those of the unsafe side (x) with the steps (z), [in] and [width of the stream].
    """

    needs_embeddings = False
    SUMS = ("safe", "unsafe")

    def __init__(self, weights: Sequence[WeightId], rows: Rows | None = None, padded: bool = False) -> None:
        self.padded = padded
        self._rows = rows
        self.safe = {weight: Moments() for weight in weights}
        self.unsafe = {weight: Moments() for weight in weights}
        self._inputs: dict[WeightId, torch.Tensor] = {}  # of the side that runs, until its block has ended
        self._streams: dict[WeightId, tuple[torch.Tensor, torch.Tensor | None]] = {}  # of the safe side, with its mask

    def layers(self, tower: str) -> Sequence[WeightId]:
        """The matrices of a tower, and the residual streams after their blocks."""
        weights = [weight for weight in self.safe if weight.tower == tower]
        return [*weights, *dict.fromkeys(_stream(weight) for weight in weights)]

    def take(self, weight: WeightId, side: int, x: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Add the safe inputs at once, the unsafe ones when their block has ended."""
        rows = counted_tokens if self._rows is None else self._rows
        if weight.slot != RESIDUAL:
            if side == SAFE:
                self.give((weight, SAFE, Spread.of(rows(weight, x, mask))))
            else:
                self._inputs[weight] = rows(weight, x, mask)
        elif side == SAFE:
            self._streams[weight] = (x.clone(), mask) if self._rows is None else (rows(weight, x, mask), None)
        else:
            target, partner_mask = self._streams.pop(weight)
            own = x if self._rows is None else rows(weight, x, mask)
            if len(target) != len(own):
                raise BadInput(f"{weight}: {len(target)} safe and {len(own)} unsafe samples; redirection needs pairs")
            if self._rows is None:
                target = counted_tokens(weight, _partners(target, partner_mask, mask, x.shape[1]), mask)
                own = rows(weight, x, mask)
            self._add(weight, to_double(target) - to_double(own))

    def update(self, part: Part) -> None:
        """Forget the streams of a batch without an unsafe side."""
        self._streams.clear()

    def join(self, item: tuple[WeightId, int, Spread | None]) -> None:
        """Add inputs of one side, those of the unsafe one with their steps."""
        weight, side, rows = item
        (self.safe if side == SAFE else self.unsafe)[weight].join(rows)

    def _add(self, stream: WeightId, steps: torch.Tensor) -> None:
        for weight in [weight for weight in self._inputs if _stream(weight) == stream]:
            self.give((weight, UNSAFE, Spread.of(self._inputs.pop(weight), steps)))


def _stream(weight: WeightId) -> WeightId:
    return WeightId(weight.tower, weight.block, RESIDUAL)


def _partners(x: torch.Tensor, mask: torch.Tensor | None, other: torch.Tensor | None, tokens: int) -> torch.Tensor:
    """The rows of x [samples, own tokens, d] that the other side's tokens go to, [samples, tokens, d].

    Args:
        x, mask: Of the side to go to; its counted tokens need not stand together.
        other, tokens: The mask of the side that goes, [samples, tokens], and its length.
    """
    mask = torch.ones(x.shape[:2], device=x.device) if mask is None else mask
    other = torch.ones(len(x), tokens, device=x.device) if other is None else other
    counted = mask.bool()
    places = (~counted).long().argsort(dim=1, stable=True)  # the counted tokens first, in order
    rank = other.long().cumsum(1) - 1  # [samples, tokens]
    last, own_last = other.long().sum(1, keepdim=True) - 1, counted.sum(1, keepdim=True) - 1
    rank = torch.where(rank == last, own_last, torch.minimum(rank, own_last)).clamp_min(0)
    return x.gather(1, places.gather(1, rank)[:, :, None].expand(-1, -1, x.shape[2]))
