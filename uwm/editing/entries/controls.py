"""Controls of an entry edit: as many entries of the same weights, chosen otherwise."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from ...models import Model
from ..live import check_live
from ..patch import Patch


def random_control(patch: Patch, seed: int = 0) -> Patch:
    """As many entries of the same weights, drawn at random: the control that every comparison shows."""
    flips = {}
    for number, (weight, indices) in enumerate(patch.flips.items()):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        size = math.prod(patch.shapes[weight])
        flips[weight] = torch.randperm(size, generator=generator)[: len(indices)].sort().values
    return replace(patch, flips=flips, recipe={"method": "random", "seed": seed}, originals={})


def magnitude_control(patch: Patch, model: Model) -> Patch:
    """As many entries of the same weights, those of largest |W|, of equal ones the first: the other control.

    Args:
        patch: It gives the counts and α.
        model: Unedited, the one that the patch was made for.

    Raises:
        BadInput: As `patched`.
    """
    check_live(model, patch)
    flips = {}
    for weight, indices in patch.flips.items():
        order = model.stored(weight).flatten().double().abs().argsort(descending=True, stable=True)
        flips[weight] = order[: len(indices)].sort().values
    return replace(patch, flips=flips, recipe={"method": "magnitude"}, originals={})
