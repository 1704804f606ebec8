"""A layer's input at the token that the embedding is read from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from ..errors import BadInput
from ..weights import WeightId
from .moments import Rows
from .passes import Part, Shared


class Pooling(Protocol):
    """What this file needs of a `Model`."""

    def pooled(self, tower: str, mask: torch.Tensor, length: int) -> torch.Tensor | None:
        """The pooled token of every sample, [samples], among `length`; None where several tokens are read."""


class PooledToken:
    """Picks a layer's input at the pooled token; a layer after the pooling has one token anyway.

    Args:
        model: It knows the token.
        otherwise: Picks the rows where the embedding is read from several tokens; None refuses such a tower.
    """

    def __init__(self, model: Pooling, otherwise: Rows | None = None) -> None:
        self._model = model
        self._otherwise = otherwise

    def __call__(self, weight: WeightId, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """One row a sample, [samples, in], of an input [samples, tokens, in] and its mask [samples, tokens].

        Raises:
            BadInput: The embedding is read from several tokens, and there is no other rule.
        """
        samples, tokens, _ = x.shape
        if tokens == 1:
            return x[:, 0]
        every = torch.ones(samples, tokens, dtype=torch.long, device=x.device) if mask is None else mask
        index = self._model.pooled(weight.tower, every, tokens)
        if index is None and self._otherwise is not None:
            return self._otherwise(weight, x, mask)
        if index is None:
            raise BadInput(
                f"{weight}: the embedding of the {weight.tower} tower is read from several tokens, so this layer has "
                "no pooled one; choose a layer of the head that pools them"
            )
        return x[torch.arange(samples, device=x.device), index.to(x.device)]


class PooledInputs(Shared):
    """Reducer: the inputs of some layers at the pooled token, of every sample.

    Args:
        model: It knows the token.
        weights: The layers.
    """

    needs_embeddings = False
    SUMS = ("_rows",)

    def __init__(self, model: Pooling, weights: Sequence[WeightId]) -> None:
        self._pick = PooledToken(model)
        self._rows: dict[WeightId, list[list[torch.Tensor]]] = {weight: [[], []] for weight in weights}

    def sides(self, weight: WeightId) -> list[torch.Tensor]:
        """Safe and unsafe side, or the safe one only, float32 [n, in] each on the CPU; empty where none was seen."""
        return [torch.cat(batches) for batches in self._rows[weight] if batches]

    def layers(self, tower: str) -> Sequence[WeightId]:
        """Those of a tower."""
        return [weight for weight in self._rows if weight.tower == tower]

    def take(self, weight: WeightId, side: int, x: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Keep one row a sample."""
        self.give((weight, side, self._pick(weight, x, mask).float().cpu()))

    def join(self, item: tuple[WeightId, int, torch.Tensor]) -> None:
        """Keep the rows of one side of a batch, [samples, in]."""
        weight, side, rows = item
        self._rows[weight][side].append(rows)

    def update(self, part: Part) -> None:
        """Nothing is left to do."""
