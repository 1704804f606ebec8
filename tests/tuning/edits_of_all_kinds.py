"""One change of every kind for any tensor, and the plain way to embed under it."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from uwm.editing.changes import AddLowRank, Scale, SetEntries
from uwm.editing.live import changed
from uwm.images import load_image
from uwm.statistics.batches import embed_inputs
from uwm.weights import WeightId

KINDS = ("scale", "set", "add")


def change_of(model, name, kind, seed=1):
    """A change of a fifth of the entries, or of low rank; None where the kind does not fit."""
    shape, rng = tuple(model.parameter(name).shape), np.random.default_rng(seed)
    some = np.sort(rng.choice(math.prod(shape), size=max(1, math.prod(shape) // 5), replace=False))
    if kind == "scale":
        return Scale(some, -1.0)
    if kind == "set":
        return SetEntries.of(some, rng.standard_normal(len(some)))
    if len(shape) != 2:
        return None
    return AddLowRank.of(*(0.2 * rng.standard_normal((size, 2)) for size in shape))


def changes_of(model, names, kind="scale"):
    """The same of several tensors, by their names as texts."""
    parsed = [WeightId.parse(name) for name in names]
    return {name: change_of(model, name, kind) or change_of(model, name, "scale") for name in parsed}


@torch.no_grad()
def embedded_plainly(model, tower, sources, changes, batch_size):
    """Normalised embeddings of the edited model, batch by batch, through the whole tower."""
    rows = []
    with changed(model, changes):
        for start in range(0, len(sources), batch_size):
            part = sources[start : start + batch_size]
            inputs = model.tokenize(part) if tower == "text" else (model.preprocess([*map(read, part)]), None)
            rows.append(F.normalize(embed_inputs(model, *inputs), dim=-1))
    return torch.cat(rows)


def read(source):
    """An image from its file, or from what reads it."""
    return source() if callable(source) else load_image(source)


def sources_of(pairs, tower):
    """The unsafe captions of pairs, or their images."""
    if tower == "text":
        return [pair.unsafe_text for pair in pairs.pairs]
    return [pair.unsafe_image for pair in pairs.pairs]
