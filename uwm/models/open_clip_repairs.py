"""What open_clip itself changes of stored tensors before it fills a module: shapes, and a bias that is missing."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import nn

POSITIONS = ("positional_embedding", "text.positional_embedding", "visual.positional_embedding")
SCALARS = ("logit_scale", "logit_bias")
REPAIRED = POSITIONS + SCALARS


def repaired(module: nn.Module, odd: dict[str, torch.Tensor], missing: set[str]) -> dict[str, torch.Tensor]:
    """As `open_clip.factory.load_checkpoint` does it, by its own functions.

    Positions are interpolated to the resolution and the context length of the module, a scale of shape [1] becomes a
    scalar or the other way round, and a missing ``logit_bias`` is zero.

    Args:
        module: To be filled; an open_clip model.
        odd: Tensors of `REPAIRED` whose stored shape is not the module's, by the module's names.
        missing: Names of the module that nothing is stored for.

    Returns:
        Name -> the tensor to fill in; what cannot be repaired comes back as it is.
    """
    from open_clip.model import resize_pos_embed, resize_text_pos_embed

    own = module.state_dict()
    state = {name: t.reshape(own[name].shape) if name in SCALARS and t.numel() == 1 else t for name, t in odd.items()}
    for resize in (resize_pos_embed, resize_text_pos_embed):
        with suppress(AssertionError, RuntimeError):  # another width; a grid that is not square
            resize(state, module)
    return state | {name: torch.zeros_like(own[name]) for name in missing & {"logit_bias"}}
