"""Pairs through a model: per-weight token statistics of both sides, streamed to whoever asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from .calibration import CalibrationPair, CalibrationSet
from .errors import InvalidResult
from .images import load_image
from .models import Model
from .taps import observe
from .weights import WeightId

BATCH_SIZE = 64
Progress = Callable[[Iterable, int, str], Iterable]  # wraps an iterable of known length, as tqdm does
Embedded = Callable[[str, torch.Tensor, torch.Tensor], None]  # takes a tower and embeddings, safe and unsafe


@dataclass(frozen=True)
class PairBatch:
    """Preprocessed tensors of some pairs; a missing modality is None.

    Pixel values are [pairs, 3, h, w], input ids and masks [pairs, length], mask 1 from the start to the end token.
    """

    safe_pixel_values: torch.Tensor | None = None
    unsafe_pixel_values: torch.Tensor | None = None
    safe_input_ids: torch.Tensor | None = None
    safe_attention_mask: torch.Tensor | None = None
    unsafe_input_ids: torch.Tensor | None = None
    unsafe_attention_mask: torch.Tensor | None = None

    def sides(self, tower: str) -> list[tuple[torch.Tensor, torch.Tensor | None]] | None:
        """The safe and the unsafe input of one tower, each with its mask; None when the modality is missing."""
        if tower.startswith("vision"):
            pixels = (self.safe_pixel_values, self.unsafe_pixel_values)
            return None if pixels[0] is None or pixels[1] is None else [(pixels[0], None), (pixels[1], None)]
        ids = (self.safe_input_ids, self.unsafe_input_ids)
        if ids[0] is None or ids[1] is None:
            return None
        return [(ids[0], self.safe_attention_mask), (ids[1], self.unsafe_attention_mask)]


@dataclass(frozen=True)
class TokenStatistics:
    """Of one layer's input X [tokens, in], for each sample of a batch (UWM, section 4).

    Attributes:
        norm: n_j = ‖X[:, j]‖₂ over the tokens, float64 [samples, in].
        std: σ_j, the unbiased standard deviation over the tokens, float64 [samples, in]; 0 where it is undefined.
        tokens: How many tokens each sample has, [samples].
    """

    norm: torch.Tensor
    std: torch.Tensor
    tokens: torch.Tensor


def token_statistics(x: torch.Tensor, mask: torch.Tensor | None = None) -> TokenStatistics:
    """Statistics of inputs [samples, tokens, in]; only tokens with mask 1 count, all of them without a mask."""
    x = x.detach().float()
    if mask is None:
        tokens = torch.full((len(x),), x.shape[1], device=x.device)
        kept = torch.ones(1, 1, 1, device=x.device)
    else:
        tokens = mask.sum(1)
        kept = mask[:, :, None].float()
    count = tokens[:, None].double()
    x = x * kept
    mean = (x.sum(1).double() / count).float()
    spread = ((x - mean[:, None]) * kept).square().sum(1).double()
    std = (spread / (count - 1).clamp_min(1)).sqrt()
    return TokenStatistics(x.square().sum(1).double().sqrt(), std, tokens)


@dataclass(frozen=True)
class QuadrupleEmbeddings:
    """One tower's embeddings of a batch, [pairs, dim], safe and unsafe."""

    safe: torch.Tensor
    unsafe: torch.Tensor


class Scorer(Protocol):
    """What the profiler feeds: statistics of the same pairs, safe and unsafe, batch by batch."""

    def update(self, safe: TokenStatistics, unsafe: TokenStatistics) -> None:
        """Take in one batch."""


def pair_batches(
    model: Model,
    calibration: CalibrationSet,
    *,
    batch_size: int = BATCH_SIZE,
    towers: Iterable[str],
    workers: int = 2,
    joint: bool = False,
) -> Iterator[PairBatch]:
    """The set as preprocessed batches.

    Args:
        model: Tokenizes and preprocesses.
        calibration: The pairs.
        batch_size: Pairs at a time.
        towers: Whose inputs are wanted.
        workers: Threads that read pictures.
        joint: Captions and pictures together, of pairs that have both; without it first the captions of all pairs
            that have them, then the pictures.
    """
    with ThreadPoolExecutor(max(1, workers)) as pool:
        if joint:
            for pairs in _chunks([p for p in calibration.pairs if p.has_text and p.has_image], batch_size):
                yield PairBatch(*_pixels(model, pairs, pool), *_tokens(model, pairs))
            return
        if "text" in towers:
            for pairs in _chunks([p for p in calibration.pairs if p.has_text], batch_size):
                yield PairBatch(None, None, *_tokens(model, pairs))
        if "vision" in towers:
            for pairs in _chunks([p for p in calibration.pairs if p.has_image], batch_size):
                yield PairBatch(*_pixels(model, pairs, pool))


def _tokens(model: Model, pairs: list[CalibrationPair]) -> tuple[torch.Tensor, ...]:
    """Safe ids and mask, unsafe ids and mask, [pairs, length] each."""
    return (*model.tokenize([p.safe_text or "" for p in pairs]), *model.tokenize([p.unsafe_text or "" for p in pairs]))


def _pixels(model: Model, pairs: list[CalibrationPair], pool: ThreadPoolExecutor) -> tuple[torch.Tensor, ...]:
    """Safe and unsafe pixel values, [pairs, 3, h, w] each."""
    sides = [[p.safe_image for p in pairs], [p.unsafe_image for p in pairs]]
    return tuple(model.preprocess(list(pool.map(load_image, _paths(side)))) for side in sides)


def count_batches(calibration: CalibrationSet, batch_size: int, towers: Iterable[str]) -> int:
    """How many batches `pair_batches` gives."""
    sizes = {"text": sum(p.has_text for p in calibration.pairs), "vision": sum(p.has_image for p in calibration.pairs)}
    return sum(-(-sizes[tower] // batch_size) for tower in towers)


def _paths(side: list[Path | None]) -> list[Path]:
    return [path for path in side if path is not None]


def _chunks(pairs: list[CalibrationPair], size: int) -> Iterator[list[CalibrationPair]]:
    for start in range(0, len(pairs), size):
        yield pairs[start : start + size]


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
        loss: Of the scored tower's and the other tower's embeddings; see `uwm.scorers.gradient`.

    Returns:
        WeightId -> |∂loss/∂W| averaged over batches, float64 [out, in]; and tower -> pairs seen.

    Raises:
        InvalidResult: No batch had both modalities, or a weight got no gradient.
    """
    weights = sorted(weights)
    total: dict[WeightId, torch.Tensor] = {}
    count, pairs = 0, 0
    for batch in batches:
        if batch.sides("text") is None or batch.sides("vision") is None:
            continue
        for tower in sorted({w.tower for w in weights}):
            for weight, gradient in _batch_gradient(model, batch, [w for w in weights if w.tower == tower], loss):
                total[weight] = total.get(weight, 0) + gradient.abs().double().cpu()
        count, pairs = count + 1, pairs + len(batch.sides("text")[0][0])  # type: ignore[index]
    if not count:
        raise InvalidResult(f"{weights[0]} received no gradient: no pair has both captions and pictures")
    return {weight: value / count for weight, value in total.items()}, {w.tower: pairs for w in weights}


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
            far = QuadrupleEmbeddings(*(embed_inputs(model, *side) for side in batch.sides(other) or []))
            unsafe = embed_inputs(model, *(batch.sides(tower) or [])[1])
        with torch.enable_grad():
            safe = embed_inputs(model, *(batch.sides(tower) or [])[0])
            found = torch.autograd.grad(loss(QuadrupleEmbeddings(safe, unsafe), far), list(live.values()))
    finally:
        for parameter in live.values():
            parameter.requires_grad_(False)
    by_key = dict(zip(live, found, strict=True))
    for weight in weights:
        ref = model.weights[weight]
        yield weight, by_key[ref.key][ref.rows(len(by_key[ref.key]))]


def embed_inputs(model: Model, inputs: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Embeddings [pairs, dim] in float32: of pictures without a mask, of tokens with one."""
    inputs = inputs.to(model.device)
    if inputs.is_floating_point():
        return model.encode_image(inputs.to(model.dtype)).float()
    mask = torch.ones_like(inputs) if mask is None else mask
    return model.encode_text(inputs, mask.to(model.device)).float()


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
