"""A patch in effect on a live model while a block runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..checkpoint import Edit
from ..errors import BadInput
from ..models import Model
from .patch import Patch


@contextmanager
def patched(model: Model, patch: Patch) -> Iterator[Model]:
    """Edit the model in place while the body runs; every bit comes back on exit, also when the body raises.

    Raises:
        BadInput: The model lacks a weight of the patch, is not the one it was made for, or is already patched.
    """
    check_live(model, patch)
    kept = {weight: model.parameter(weight).view(-1)[_on(model, indices)] for weight, indices in patch.flips.items()}
    model.edited.update(patch.flips)
    try:
        for weight, indices in patch.flips.items():
            stored = model.stored(weight).clone().flatten()
            changed = Edit(indices, patch.alpha).apply(stored)[indices]
            live = model.parameter(weight).view(-1)
            live[_on(model, indices)] = changed.to(device=live.device, dtype=live.dtype)
        yield model
    finally:
        for weight, values in kept.items():
            model.parameter(weight).view(-1)[_on(model, patch.flips[weight])] = values
        model.edited.difference_update(patch.flips)


def _on(model: Model, indices: torch.Tensor) -> torch.Tensor:
    return indices.to(model.device)


def check_live(model: Model, patch: Patch) -> None:
    for weight in patch.flips:
        if weight not in model.weights:
            raise BadInput(f"the patch edits {weight}, which this model does not have")
        if weight in model.edited:
            raise BadInput(f"{weight} is already patched; leave the earlier `patched` block first")
        if tuple(model.parameter(weight).shape) != patch.shapes[weight]:
            shape = list(model.parameter(weight).shape)
            raise BadInput(f"the patch was made for {weight} of {list(patch.shapes[weight])}, this model has {shape}")
        if model.fingerprint(weight) != patch.base[weight]:
            raise BadInput(f"{weight} differs from the weight this patch was made for; score this model anew")
