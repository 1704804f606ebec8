"""Mean absolute gradients of a loss on embeddings (the gradient baselines of UWM, section 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from ..errors import InvalidResult
from ..models import Model
from ..processes import in_rounds, is_own
from ..weights import WeightId
from .batches import DoneBatch, PairBatch, embed_inputs


@dataclass(frozen=True)
class QuadrupleEmbeddings:
    """One tower's embeddings of a batch, [pairs, dim], safe and unsafe."""

    safe: torch.Tensor
    unsafe: torch.Tensor


class GradientSums:
    """Sums over batches of |∂loss/∂W|, float64 [out, in] each.

    Args:
        weights: What to differentiate by.

    Attributes:
        pairs: How many were seen.
    """

    SUMS = ("pairs", "_batches", "_totals")

    def __init__(self, weights: Iterable[WeightId]) -> None:
        self.weights = sorted(weights)
        self.pairs = self._batches = 0
        self._totals: list[torch.Tensor | int] = [0] * len(self.weights)

    def add(self, found: Mapping[WeightId, torch.Tensor], pairs: int) -> None:
        """Add a batch; without pairs nothing."""
        if pairs:
            self._totals = [t + found[w].double() for w, t in zip(self.weights, self._totals, strict=True)]
            self.pairs, self._batches = self.pairs + pairs, self._batches + 1

    def means(self) -> dict[WeightId, torch.Tensor]:
        """Averaged over batches. Raises InvalidResult where there was none."""
        if not self._batches:
            raise InvalidResult(f"{self.weights[0]} received no gradient: no pair has both captions and pictures")
        return {w: t / self._batches for w, t in zip(self.weights, self._totals, strict=True)}  # type: ignore[misc]


def gradients(
    model: Model,
    batches: Iterable[PairBatch],
    sums: GradientSums,
    loss: Callable[[QuadrupleEmbeddings, QuadrupleEmbeddings], torch.Tensor],
) -> None:
    """Sum up absolute gradients of a loss over batches (the gradient baselines of UWM, section 5).

    Args:
        model: Its parameters stay as they are and need no gradient before or after.
        batches: With both modalities.
        sums: Is added to.
        loss: Of the scored tower's and the other tower's embeddings; see `uwm.editing.entries.gradients`.
    """

    def of_each() -> Iterator[tuple[dict[WeightId, torch.Tensor], int] | None]:
        for number, batch in enumerate(batches):
            own = is_own(number) and not isinstance(batch, DoneBatch)
            yield _of_batch(model, batch, sums.weights, loss) if own else ({}, 0)

    for found, pairs in in_rounds(of_each(), "gradients"):
        sums.add(found, pairs)


def _of_batch(
    model: Model, batch: PairBatch, weights: list[WeightId], loss: Callable
) -> tuple[dict[WeightId, torch.Tensor], int]:
    """Absolute gradients of one batch, float32 [out, in] on the CPU, and its pairs; 0 where a modality is missing."""
    if min(len(batch.sides("text")), len(batch.sides("vision"))) < 2:
        return {}, 0
    towers = sorted({w.tower for w in weights})
    parts = (_batch_gradient(model, batch, [w for w in weights if w.tower == tower], loss) for tower in towers)
    return {weight: found.abs().cpu() for part in parts for weight, found in part}, len(batch.sides("text")[0][0])


def _batch_gradient(
    model: Model, batch: PairBatch, weights: list[WeightId], loss: Callable
) -> Iterator[tuple[WeightId, torch.Tensor]]:
    """The gradient of one batch's loss by the weights of one tower, each [out, in]."""
    tower = weights[0].tower
    other = "vision" if tower == "text" else "text"
    live = {model.weights[w].key: model.trainable(w) for w in weights}
    try:
        for parameter in live.values():
            parameter.requires_grad_(True)
        with torch.no_grad():
            far = QuadrupleEmbeddings(*(embed_inputs(model, *side) for side in batch.sides(other)))
            unsafe = embed_inputs(model, *batch.sides(tower)[1])
        with torch.enable_grad():
            safe = embed_inputs(model, *batch.sides(tower)[0])
            found = torch.autograd.grad(loss(QuadrupleEmbeddings(safe, unsafe), far), list(live.values()))
    finally:
        for parameter in live.values():
            parameter.requires_grad_(False)
    by_key = dict(zip(live, found, strict=True))
    for weight in weights:
        ref = model.weights[weight]
        yield weight, by_key[ref.key][ref.rows(len(by_key[ref.key]))]
