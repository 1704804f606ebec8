"""Another checkpoint's tower in place of that inside a bigger model, which is neither copied nor loaded again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..checkpoint import Checkpoint
from ..errors import BadInput
from ..layouts import find_tensors, recognise
from ..weights import WeightId


@contextmanager
def placed(module: nn.Module, tower: str, source: Checkpoint) -> Iterator[None]:
    """A module computes with the tower of another checkpoint, of any key layout, while the body runs.

    Only the tower's own tensors are copied; afterwards the module has its own again, bit for bit.

    Args:
        module: A bigger model, such as a LLaVA or a text encoder.
        tower: ``vision``, ``text`` or ``text_2``, as `layouts.recognise` names it in `module`.
        source: Holds a tower of this modality: ``vision``, or ``text`` (also for ``text_2`` where it has no other).

    Raises:
        BadInput: The source has no such tower, or one of another size.
    """
    parameters = dict(module.named_parameters())
    own = {
        name: ref
        for name, ref in find_tensors(recognise(parameters, type(module).__name__), parameters).items()
        if name.tower == tower
    }
    values = {name: _stored(source, name) for name in own}
    for name, ref in own.items():
        expected, found = tuple(ref.of(parameters[ref.key]).shape), tuple(values[name].shape)
        if expected != found:
            raise BadInput(
                f"{source.path}: {name} is {list(found)}, the model that reads it expects {list(expected)}; it needs a "
                "tower of the same architecture"
            )
    kept = {ref.key: parameters[ref.key].detach().clone() for ref in own.values()}
    try:
        with torch.no_grad():
            for name, ref in own.items():
                ref.of(parameters[ref.key].data).copy_(values[name])
        yield
    finally:
        with torch.no_grad():
            for key, value in kept.items():
                parameters[key].data.copy_(value)


def _stored(source: Checkpoint, name: WeightId) -> torch.Tensor:
    """The source's values of a named tensor. Raises BadInput where it has none."""
    modality = name.tower.partition("_")[0]
    there = next((t for t in (name.tower, modality) if source.layout.tower(t) is not None), None)
    place = None if there is None else WeightId(there, name.block, name.slot)
    if place is None or place not in source.tensors:
        lack = f"no {modality} tower" if place is None else f"no {name}"
        raise BadInput(f"{source.path}: has {lack} to put into the model that reads it ({source.layout.name})")
    return source.matrix(place)
