"""Embeddings of a set's captions and images: each different one is embedded once, whatever the number of its pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from .cache import EmbeddingCache, embedding_key
from .calibration import CalibrationSet
from .errors import BadInput, InvalidResult
from .metrics import Items, collapsed, first_rows
from .models import Model
from .processes import from_first, is_first
from .statistics.batches import BATCH_SIZE, Progress
from .statistics.sources import embed_sources

SIDES = ("safe", "unsafe")


@dataclass(frozen=True)
class Embeddings:
    """Normalised embeddings of a set's quadruples, float32 [n, dim] each, on the CPU, row for row."""

    safe_text: torch.Tensor
    unsafe_text: torch.Tensor
    safe_image: torch.Tensor
    unsafe_image: torch.Tensor


def quadruples(calibration: CalibrationSet) -> CalibrationSet:
    """The pairs that have both captions and images. Raises BadInput when there are none."""
    whole = replace(calibration, pairs=tuple(p for p in calibration.pairs if p.has_text and p.has_image))
    if not whole.pairs:
        raise BadInput(f"{calibration.root}: no pair has both captions and images, which SafeGround needs")
    return whole


def items_of(whole: CalibrationSet) -> Items:
    """Which rows of complete quadruples are one item: equal captions, and images whose files are equal byte for byte.

    Pairs that name a `group` are partners of each other; of the others those that have the image in common.
    """
    texts, images = ([_keys(whole, modality, side) for side in SIDES] for modality in ("text", "image"))
    groups = [[(p.group,) if p.group else key for p, key in zip(whole.pairs, keys, strict=True)] for keys in images]
    return Items(*map(_numbers, texts), *map(_numbers, images), *map(_numbers, groups))


def _numbers(keys: Sequence[Any]) -> torch.Tensor:
    """Equal numbers for equal keys, in the order in which they come, int64 [n]."""
    known: dict[Any, int] = {}
    return torch.tensor([known.setdefault(key, len(known)) for key in keys])


def _keys(calibration: CalibrationSet, modality: str, side: str) -> list[str]:
    """The caption, or the sha256 of the image's file, of one side of each pair."""
    sources = [getattr(pair, f"{side}_{modality}") for pair in calibration.pairs]
    return sources if modality == "text" else [calibration.hashed(path) for path in sources]


def different_items(calibration: CalibrationSet, modality: str) -> tuple[list[Any], list[torch.Tensor]]:
    """Every different caption, or image by its content, once; and which of them each pair has, int64 [n] for each side.

    Args:
        calibration: Pairs that all have both sides.
        modality: ``text`` or ``image``.
    """
    keys = [_keys(calibration, modality, side) for side in SIDES]
    items: dict[str, Any] = {}
    for side, own in zip(SIDES, keys, strict=True):
        for pair, key in zip(calibration.pairs, own, strict=True):
            items.setdefault(key, getattr(pair, f"{side}_{modality}"))
    number = {key: place for place, key in enumerate(items)}
    return [*items.values()], [torch.tensor([number[key] for key in own]) for own in keys]


def collapsed_towers(embeddings: Embeddings, items: Items) -> Iterator[str]:
    """The towers that give different items one embedding."""
    for tower, modality in (("text", "text"), ("vision", "image")):
        sides = [f"{side}_{modality}" for side in SIDES]
        if all(collapsed(getattr(embeddings, side)[first_rows(getattr(items, side))[0]]) for side in sides):
            yield tower


def embed(
    model: Model,
    calibration: CalibrationSet,
    *,
    batch_size: int = BATCH_SIZE,
    workers: int = 2,
    progress: Progress | None = None,
    cache: EmbeddingCache | None = None,
) -> Embeddings:
    """Embeddings of every complete quadruple of a set, from the cache where it has them.

    Raises:
        BadInput: The set has no complete quadruple. InvalidResult: NaN or infinite embeddings.
    """
    whole = quadruples(calibration)
    key, found = (
        (None, None) if cache is None else from_first(partial(_known, cache, model, whole, batch_size), "cache")
    )
    if found is not None and _are_embeddings(found, len(whole)):
        return Embeddings(**found)
    settings: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": progress}
    made = Embeddings(*embed_tower(model, whole, "text", **settings), *embed_tower(model, whole, "vision", **settings))
    if cache is not None and key is not None and is_first():
        cache.put(key, vars(made))
    return made


def _are_embeddings(found: dict[str, torch.Tensor], pairs: int) -> bool:
    """Whether cached tensors can be the embeddings of so many pairs; where in doubt they are made anew."""
    shapes = {tuple(tensor.shape) for tensor in found.values()}
    whole = found.keys() == Embeddings.__dataclass_fields__.keys() and len(shapes) == 1
    return whole and all(len(t) == pairs and bool(torch.isfinite(t).all()) for t in found.values())


def _known(
    cache: EmbeddingCache, model: Model, whole: CalibrationSet, batch_size: int
) -> tuple[str, dict[str, torch.Tensor] | None]:
    """The key of a set's embeddings, and the cached ones."""
    key = embedding_key(model, whole, batch_size)
    return key, cache.get(key)


@torch.no_grad()
def embed_tower(
    model: Model,
    calibration: CalibrationSet,
    tower: str,
    *,
    batch_size: int = BATCH_SIZE,
    workers: int = 2,
    progress: Progress | None = None,
) -> list[torch.Tensor]:
    """Normalised embeddings of the safe and of the unsafe side, float32 [n, dim] on the CPU, of pairs that have both.

    Rows of one item are equal bit for bit, since it is embedded once.

    Args:
        tower: ``text`` or ``vision``.

    Raises:
        InvalidResult: NaN or infinite embeddings.
    """
    modality = "text" if tower == "text" else "image"
    pairs = tuple(p for p in calibration.pairs if getattr(p, f"has_{modality}"))
    if not pairs:
        return []
    sources, sides = different_items(replace(calibration, pairs=pairs), modality)
    passed: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": progress}
    rows = F.normalize(embed_sources(model, tower, sources, name=f"embed {tower}", **passed), dim=-1)
    embedded = [rows[own] for own in sides]
    bad = ~torch.isfinite(torch.cat(embedded, 1)).all(1)
    if bad.any():
        raise InvalidResult(f"{tower} tower: NaN or infinite embeddings at pair {pairs[int(bad.nonzero()[0])].id!r}")
    return embedded
