"""Stored tensors into a module, one by one, whatever prefixes the two put before a tower."""

from __future__ import annotations

import torch
from torch import nn

from ..checkpoint import Checkpoint
from ..errors import BadInput
from ..layouts import Tower, recognise

IGNORED_KEYS = ("position_ids",)  # buffers that older files hold and newer libraries make themselves


def fill(module: nn.Module, checkpoint: Checkpoint, scope: str = "", tower: Tower | None = None) -> None:
    """Copy every stored tensor of the scope into the module.

    Args:
        module: Of the same architecture; its towers may stand under other prefixes than the checkpoint's.
        checkpoint: Where the tensors are.
        scope: Only keys under this prefix count.
        tower: The checkpoint's tower that a module of one tower is; None where the module has all of them.

    Raises:
        BadInput: A tensor is missing, foreign or of another shape.
    """
    own = module.state_dict()
    names = stored_names(module, checkpoint, scope, tower)
    shapes = {names[key]: shape for key, shape in checkpoint.shapes().items() if key in names}
    missing, foreign = sorted(own.keys() - shapes.keys()), sorted(shapes.keys() - own.keys())
    if missing or foreign:
        word, odd = ("misses", missing) if missing else ("has unknown", foreign)
        listed = ", ".join(odd[:10]) + (f" and {len(odd) - 10} more" if len(odd) > 10 else "")
        raise BadInput(f"{checkpoint.path}: {word} {listed}; do the weights belong to this config or --arch?")
    for name, shape in shapes.items():
        if shape != tuple(own[name].shape):
            raise BadInput(
                f"{checkpoint.path}: {name} is {list(shape)}, the architecture expects {list(own[name].shape)}; "
                "check the config or --arch"
            )
    with torch.no_grad():
        for key, name in names.items():
            own[name].copy_(checkpoint.read(key))


def stored_names(
    module: nn.Module, checkpoint: Checkpoint, scope: str = "", tower: Tower | None = None
) -> dict[str, str]:
    """Stored key -> the module's own name for it."""
    towers = recognise(dict(module.named_parameters()), type(module).__name__).towers
    ours_by_name = {ours.name: ours for ours in towers}
    pairs = [(theirs, ours_by_name[theirs.name]) for theirs in checkpoint.layout.towers if theirs.name in ours_by_name]
    pairs = pairs if tower is None else [(tower, towers[0])]
    names = {}
    for key in checkpoint.shapes():
        if not key.startswith(scope) or key.endswith(IGNORED_KEYS):
            continue
        names[key] = key[len(scope) :]
        for theirs, ours in pairs:
            if key.startswith(theirs.prefix):
                names[key] = ours.prefix + key[len(theirs.prefix) :]
    return names
