"""Which inputs are equal: a digest of each, whatever the batch that it came in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from ..weights import WeightId
from .passes import Part, Shared


def digests(inputs: torch.Tensor, mask: torch.Tensor | None) -> list[bytes]:
    """A digest of every input: of the whole picture, or of a caption's tokens that its mask counts.

    Args:
        inputs: Pictures [n, …], or ids [n, length].
        mask: 1 or 0, [n, length]; None for pictures.
    """
    inputs = inputs.detach().cpu()
    rows = inputs if mask is None else [row[keep > 0] for row, keep in zip(inputs, mask.cpu(), strict=True)]
    return [hashlib.sha256(row.contiguous().view(torch.uint8).numpy().data).digest() for row in rows]


class InputKeys(Shared):
    """Reducer: the digest of every input, by tower and side, in the order of the pass."""

    needs_embeddings = False
    SUMS = ("_keys",)

    def __init__(self) -> None:
        self._keys: dict[str, list[list[bytes]]] = {}

    def sides(self, tower: str) -> list[list[bytes]]:
        """Safe and unsafe side, or the safe one only; empty where none was seen."""
        return self._keys.get(tower, [])

    def layers(self, tower: str) -> Sequence[WeightId]:
        """None: it looks at no layer."""
        return ()

    def take(self, weight: WeightId, side: int, x: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Never called."""

    def update(self, part: Part) -> None:
        """Take in one batch."""
        self.give((part.tower, [digests(*side) for side in part.inputs]))

    def join(self, item: tuple[str, list[list[bytes]]]) -> None:
        """Keep the digests of one batch of a tower."""
        tower, sides = item
        for keys, found in zip(self._keys.setdefault(tower, [[] for _ in sides]), sides, strict=True):
            keys.extend(found)
