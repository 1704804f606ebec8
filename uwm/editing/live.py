"""A patch in effect on a live model while a block runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from ..checkpoint.dtypes import Bits
from ..errors import BadInput
from ..models import Model
from ..weights import WeightId
from .changes import Change
from .patch import Patch


@contextmanager
def patched(model: Model, patch: Patch) -> Iterator[Model]:
    """Edit the model in place while the body runs; every bit comes back on exit, also when the body raises.

    Raises:
        BadInput: The model lacks a tensor of the patch, is not the one it was made for, or is already patched.
    """
    check_live(model, patch)
    with changed(model, patch.changes):
        yield model


@contextmanager
def changed(model: Model, changes: Mapping[WeightId, Change]) -> Iterator[Model]:
    """As `patched`, of changes that were made for this model and fit it; nothing is checked."""
    kept = {name: _values(model, name, change).clone() for name, change in changes.items()}
    entered = {*changes} - model.edited  # an outer block that edits the others goes on
    model.edited |= entered
    try:
        for name, change in changes.items():
            new, touched = edited(model, name, change), change.touched()
            _write(model, name, change, new if touched is None else new.view(-1)[torch.as_tensor(touched)])
        yield model
    finally:
        for name, values in kept.items():
            _write(model, name, changes[name], values)
        model.edited -= entered


def edited(model: Model, name: WeightId, change: Change) -> torch.Tensor:
    """What a change makes of a stored tensor, in its stored type; the model stays as it is."""
    stored = Bits.of(model.stored(name))
    change.change(stored.array.reshape(-1), stored.dtype)
    return stored.torch()


def _values(model: Model, name: WeightId, change: Change) -> torch.Tensor:
    """The live values that a change may touch: [n], or the whole tensor."""
    live, touched = model.parameter(name), change.touched()
    if touched is None:
        return live
    flat = _flat(live)
    return live[_places(live, touched)] if flat is None else flat[torch.as_tensor(touched, device=live.device)]


def _write(model: Model, name: WeightId, change: Change, values: torch.Tensor) -> None:
    live, touched = model.parameter(name), change.touched()
    values = values.to(device=live.device, dtype=live.dtype)
    flat = _flat(live)
    if touched is None:
        live.copy_(values)
    elif flat is None:
        live[_places(live, touched)] = values
    else:
        flat[torch.as_tensor(touched, device=live.device)] = values


def _flat(live: torch.Tensor) -> torch.Tensor | None:
    """A tensor's values as one row that writes to it; None where it is a transposed view."""
    return live.view(-1) if live.is_contiguous() else None


def _places(live: torch.Tensor, touched: object) -> tuple[torch.Tensor, ...]:
    """Flat indices as places of a tensor that may be a transposed view."""
    return torch.unravel_index(torch.as_tensor(touched, device=live.device), live.shape)


def check_live(model: Model, patch: Patch) -> None:
    """Refuse a patch that is not this model's, or that is in effect. Raises BadInput."""
    for name, shape in patch.shapes.items():
        if name not in model.tensors:
            raise BadInput(f"the patch edits {name}, which this model does not have")
        if name in model.edited:
            raise BadInput(f"{name} is already patched; leave the earlier `patched` block first")
        if tuple(model.parameter(name).shape) != shape:
            found = list(model.parameter(name).shape)
            raise BadInput(f"the patch was made for {name} of {list(shape)}, this model has {found}")
        if model.fingerprint(name) != patch.base[name]:
            raise BadInput(f"{name} differs from the weight this patch was made for; score this model anew")
