"""Patches from random scores of a checkpoint's weights."""

from __future__ import annotations

import numpy as np
import torch

import uwm
from uwm.checkpoint import open_checkpoint
from uwm.checkpoint.dtypes import Bits
from uwm.editing.changes import Scale
from uwm.editing.entries.scores import Scores
from uwm.weights import SLOTS, WeightId

FC2 = WeightId("vision", 1, "fc2")
EVERY_SLOT = [WeightId(tower, 1, slot) for tower in ("text", "vision") for slot in SLOTS]


def scale(indices, factor=-1.0):
    """A change that multiplies these flat indices, of any kind of sequence."""
    return Scale(np.asarray(indices, np.int64), factor)


def applied(change, tensor):
    """A copy of a tensor after a change, computed in one run."""
    bits = Bits.of(tensor.clone())
    change.change(bits.array.reshape(-1), bits.dtype)
    return bits.torch()


def scores_of(reference, weights, seed=0):
    """Random scores of a checkpoint's weights."""
    checkpoint, generator = open_checkpoint(reference), torch.Generator().manual_seed(seed)
    tensors = {w: torch.rand(checkpoint.matrix(w).shape, generator=generator) for w in sorted(weights)}
    base = {w: checkpoint.fingerprint(w) for w in tensors}
    return Scores(tensors, base, {"method": "uwm", "pairs": {}}, {w: {} for w in tensors})


def patch_of(reference, weights=(FC2,), mass=0.2, **settings):
    return uwm.select(scores_of(reference, weights), mass=mass, **settings)
