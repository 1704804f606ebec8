"""Stored tensors into a module, one by one, whatever prefixes the two put before a tower."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..checkpoint import Checkpoint
from ..errors import BadInput
from ..layouts import Tower, recognise

IGNORED_KEYS = ("position_ids",)  # buffers that older files hold and newer libraries make themselves


Repair = Callable[[nn.Module, dict[str, torch.Tensor], set[str]], dict[str, torch.Tensor]]


def fill(
    module: nn.Module,
    checkpoint: Checkpoint,
    scope: str = "",
    tower: Tower | None = None,
    *,
    repair: Repair | None = None,
    repairable: Sequence[str] = (),
) -> None:
    """Copy every stored tensor of the scope into the module.

    Args:
        module: Of the same architecture; its towers may stand under other prefixes than the checkpoint's.
        checkpoint: Where the tensors are.
        scope: Only keys under this prefix count.
        tower: The checkpoint's tower that a module of one tower is; None where the module has all of them.
        repair: Makes tensors fit as the module's own library does, from the odd ones and the names that are missing.
        repairable: Which of the module's tensors it may be given.

    Raises:
        BadInput: A tensor is missing, foreign or of another shape.
    """
    own = module.state_dict()
    names, shapes = _stored(module, checkpoint, scope, tower)
    made: dict[str, torch.Tensor] = {}
    if repair is not None:
        odd = {n for n in repairable if n in own and n in shapes and shapes[n] != tuple(own[n].shape)}
        tensors = {name: checkpoint.read(key) for key, name in names.items() if name in odd}
        made = repair(module, tensors, own.keys() - shapes.keys())
        shapes |= {name: tuple(tensor.shape) for name, tensor in made.items()}
    _check_shapes(checkpoint, shapes, {name: tuple(tensor.shape) for name, tensor in own.items()})
    stored = {name: key for key, name in names.items()}
    with torch.no_grad():
        for name in shapes:
            tensor = made[name] if name in made else checkpoint.read(stored[name])
            refuse_nonfinite(checkpoint, stored.get(name, name), tensor)
            own[name].copy_(tensor)


def check_fits(module: nn.Module, checkpoint: Checkpoint, scope: str = "", tower: Tower | None = None) -> None:
    """The same for a module without memory, of which nothing is filled. Raises BadInput as `fill`."""
    shapes = _stored(module, checkpoint, scope, tower)[1]
    _check_shapes(checkpoint, shapes, {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()})


def refuse_nonfinite(checkpoint: Checkpoint, name: Any, tensor: torch.Tensor) -> None:
    """Refuse NaN and infinite values, edited or not: every figure would be of them. Raises BadInput."""
    if tensor.dtype.is_floating_point and tensor.dtype.itemsize > 1 and not (finite := torch.isfinite(tensor)).all():
        first = tuple((~finite).nonzero()[0].tolist())
        raise BadInput(
            f"{checkpoint.path}: {name} holds {int((~finite).sum())} NaN or infinite values, first at {first}"
        )


def _stored(
    module: nn.Module, checkpoint: Checkpoint, scope: str, tower: Tower | None
) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """Stored key -> the module's own name, and that name -> the stored shape."""
    names = stored_names(module, checkpoint, scope, tower)
    return names, {names[key]: shape for key, shape in checkpoint.shapes().items() if key in names}


def _check_shapes(checkpoint: Checkpoint, found: dict[str, tuple[int, ...]], own: dict[str, tuple[int, ...]]) -> None:
    missing, foreign = sorted(own.keys() - found.keys()), sorted(found.keys() - own.keys())
    if missing or foreign:
        word, odd = ("misses", missing) if missing else ("has unknown", foreign)
        listed = ", ".join(odd[:10]) + (f" and {len(odd) - 10} more" if len(odd) > 10 else "")
        raise BadInput(f"{checkpoint.path}: {word} {listed}; do the weights belong to this config or --arch?")
    for name, shape in found.items():
        if shape != own[name]:
            raise BadInput(
                f"{checkpoint.path}: {name} is {list(shape)}, the architecture expects {list(own[name])}; "
                "check the config or --arch"
            )


def stored_names(
    module: nn.Module, checkpoint: Checkpoint, scope: str = "", tower: Tower | None = None
) -> dict[str, str]:
    """Stored key -> the module's own name for it."""
    towers = recognise(dict(module.named_parameters()), type(module).__name__).towers
    ours_by_name = {ours.name: ours for ours in towers}
    pairs = [(theirs, ours_by_name[theirs.name]) for theirs in checkpoint.layout.towers if theirs.name in ours_by_name]
    pairs = pairs if tower is None else [(tower, towers[0])]
    own, names = module.state_dict(), {}
    for key in checkpoint.shapes():
        if not key.startswith(scope) or key.endswith(IGNORED_KEYS):
            continue
        names[key] = key[len(scope) :]
        for theirs, ours in pairs:
            renamed = ours.prefix + key[len(theirs.prefix) :]
            if key.startswith(theirs.prefix) and (theirs.prefix or renamed in own):  # without a prefix it may be alien
                names[key] = renamed
    return names
