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
def placed(module: nn.Module, tower: str, source: Checkpoint, theirs: str | None = None) -> Iterator[None]:
    """A module computes with the tower of another checkpoint, of any key layout, while the body runs.

    Only the tower's own tensors are copied; afterwards the module has its own again, bit for bit.

    Args:
        module: A bigger model, such as a LLaVA or a text encoder.
        tower: ``vision`` or ``text``, as `layouts.recognise` names it in `module`.
        source: Holds such a tower.
        theirs: What it is called there, ``text_2`` say; None for the same name.

    Raises:
        BadInput: The source has no such tower, or one of another size.
    """
    parameters = dict(module.named_parameters())
    own = {
        name: ref
        for name, ref in find_tensors(recognise(parameters, type(module).__name__), parameters).items()
        if name.tower == tower
    }
    values = {name: _stored(source, theirs or tower, name) for name in own}
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


def _stored(source: Checkpoint, tower: str, name: WeightId) -> torch.Tensor:
    """The source's values of a named tensor of a tower. Raises BadInput where it has none."""
    place = WeightId(tower, name.block, name.slot)
    if place not in source.tensors:
        lack = f"no {tower} tower" if source.layout.tower(tower) is None else f"no {place}"
        raise BadInput(f"{source.path}: has {lack} to put into the model that reads it ({source.layout.name})")
    return source.matrix(place)
