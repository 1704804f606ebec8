"""Embeddings of every pair, kept while a pass makes them anyway."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..errors import NotFinite
from ..weights import WeightId
from .passes import Part, Shared


class PairEmbeddings(Shared):
    """Reducer that keeps the embeddings of every side, by tower, in the order of the pass.

    Args:
        normalised: Whether they are.
    """

    SUMS = ("_rows",)

    def __init__(self, normalised: bool = True) -> None:
        self._normalised = normalised
        self._rows: dict[str, list[list[torch.Tensor]]] = {}  # tower -> side -> batches [pairs, dim]

    def sides(self, tower: str) -> list[torch.Tensor]:
        """Safe and unsafe side, or the safe one only, float32 [n, dim] each on the CPU; empty where none was kept."""
        return [torch.cat(batches) for batches in self._rows.get(tower, [])]

    def layers(self, tower: str) -> Sequence[WeightId]:
        """None: it looks at no layer."""
        return ()

    def take(self, weight: WeightId, side: int, x: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Never called."""

    def update(self, part: Part) -> None:
        """Keep one batch. Raises InvalidResult for NaN or infinite embeddings."""
        for side in part.embeddings:
            bad = ~torch.isfinite(side).all(1)
            if bad.any():
                what = f"{part.tower} tower: NaN or infinite embeddings"
                raise NotFinite(what, part.tower, part.first + int(bad.nonzero()[0]))
        ends = [F.normalize(side, dim=-1) if self._normalised else side for side in part.embeddings]
        self.give((part.tower, [side.cpu() for side in ends]))

    def join(self, item: tuple[str, list[torch.Tensor]]) -> None:
        """Keep the sides of one batch of a tower, [pairs, dim] each."""
        tower, sides = item
        for batches, side in zip(self._rows.setdefault(tower, [[] for _ in sides]), sides, strict=True):
            batches.append(side)
