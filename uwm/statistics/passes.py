"""The one pass: pairs through a model, statistics of both sides streamed to whoever asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import torch

from ..errors import InvalidResult
from ..models import Model
from ..weights import WeightId
from .batches import PairBatch
from .channel_norms import TokenStatistics, token_statistics
from .hooks import observe

Embedded = Callable[[str, torch.Tensor, torch.Tensor], None]  # takes a tower and embeddings, safe and unsafe


class Scorer(Protocol):
    """What the profiler feeds: statistics of the same pairs, safe and unsafe, batch by batch."""

    def update(self, safe: TokenStatistics, unsafe: TokenStatistics) -> None:
        """Take in one batch."""


@torch.no_grad()
def profile(
    model: Model, batches: Iterable[PairBatch], scorers: Mapping[WeightId, Scorer], embedded: Embedded | None = None
) -> dict[str, int]:
    """Run the pairs through the towers and feed every weight's scorer.

    Args:
        model: In eval mode.
        batches: Of any sizes; the scores do not depend on how the pairs are batched.
        scorers: One a weight; only the towers that they name are run.
        embedded: Called with the tower and both sides' embeddings [pairs, dim] of every batch, which the pass makes
            anyway.

    Returns:
        Tower -> pairs seen.

    Raises:
        InvalidResult: A layer saw no rows, fewer than there were pairs, or values that are not finite.
    """
    seen = dict.fromkeys(sorted({w.tower for w in scorers}), 0)
    for batch in batches:
        for tower in seen:
            sides = batch.sides(tower)
            if sides is None:
                continue
            layers = {w: model.owner(w) for w in scorers if w.tower == tower}
            found, ends = zip(*(_observe_side(model, tower, layers, *side, seen[tower]) for side in sides), strict=True)
            for weight in layers:
                scorers[weight].update(*(side[weight] for side in found))
            if embedded is not None:
                embedded(tower, *ends)
            seen[tower] += len(sides[0][0])
    for tower, pairs in seen.items():
        if pairs == 0:
            weight = next(w for w in scorers if w.tower == tower)
            raise InvalidResult(f"{weight} received no activations: the set has no pairs for the {tower} tower")
    return seen


def _observe_side(
    model: Model, tower: str, layers: Mapping, inputs: torch.Tensor, mask: torch.Tensor | None, first: int
) -> tuple[dict[WeightId, TokenStatistics], torch.Tensor]:
    """Statistics of every layer and the embeddings for one side of a batch; `first` is its first pair's number."""
    found: dict[WeightId, TokenStatistics] = {}
    inputs = inputs.to(model.device)
    if inputs.is_floating_point():
        counted = model.image_mask(inputs)
    else:
        mask = (torch.ones_like(inputs) if mask is None else mask).to(model.device)

    def sink(weight: WeightId, x: torch.Tensor) -> None:
        found[weight] = token_statistics(x, counted if mask is None else model.text_mask(mask, x.shape[1]))

    with observe(layers, sink):
        end = model.encode_image(inputs.to(model.dtype)) if mask is None else model.encode_text(inputs, mask, tower)
    for weight in layers:
        rows = len(found[weight].norm) if weight in found else 0
        if rows != len(inputs):
            raise InvalidResult(f"{weight} received {rows} activations for {len(inputs)} samples; it cannot be scored")
        bad = ~torch.isfinite(found[weight].norm).all(1)
        if bad.any():
            raise InvalidResult(f"{weight}: NaN or infinite activations at pair {first + int(bad.nonzero()[0])}")
    return found, end.float()
