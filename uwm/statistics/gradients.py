"""Mean absolute gradients of a loss on embeddings (the gradient baselines of UWM, section 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from ..errors import InvalidResult
from ..models import Model
from ..processes import in_rounds, is_own
from ..weights import WeightId
from .batches import PairBatch, embed_inputs


@dataclass(frozen=True)
class QuadrupleEmbeddings:
    """One tower's embeddings of a batch, [pairs, dim], safe and unsafe."""

    safe: torch.Tensor
    unsafe: torch.Tensor


def gradients(
    model: Model,
    batches: Iterable[PairBatch],
    weights: Iterable[WeightId],
    loss: Callable[[QuadrupleEmbeddings, QuadrupleEmbeddings], torch.Tensor],
) -> tuple[dict[WeightId, torch.Tensor], dict[str, int]]:
    """Mean absolute gradient of a loss over batches (the gradient baselines of UWM, section 5).

    Args:
        model: Its parameters stay as they are and need no gradient before or after.
        batches: With both modalities.
        weights: What to differentiate by.
        loss: Of the scored tower's and the other tower's embeddings; see `uwm.editing.entries.gradients`.

    Returns:
        WeightId -> |∂loss/∂W| averaged over batches, float64 [out, in]; and tower -> pairs seen.

    Raises:
        InvalidResult: No batch had both modalities, or a weight got no gradient.
    """
    weights = sorted(weights)
    total: dict[WeightId, torch.Tensor] = {}
    count, pairs = 0, 0
    own = (_of_batch(model, batch, weights, loss) if is_own(n) else None for n, batch in enumerate(batches))
    for found, size in in_rounds(own, "gradients"):
        for weight, gradient in found.items():
            total[weight] = total.get(weight, 0) + gradient.double()
        count, pairs = count + (size > 0), pairs + size
    if not count:
        raise InvalidResult(f"{weights[0]} received no gradient: no pair has both captions and pictures")
    return {weight: value / count for weight, value in total.items()}, {w.tower: pairs for w in weights}


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
