"""OpenAI's releases in small: a TorchScript archive and a state dict with OpenAI's names, of random weights."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

NUMBERS = {"input_resolution": 64, "context_length": 24, "vocab_size": 49408}
CONFIG = {  # one head of 64 channels, by OpenAI's rule
    "embed_dim": 24,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16, "head_width": 64},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}


class Box(nn.Module):
    """A module of nothing but names."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def openai_state(seed: int = 0, dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    """Weights of a two-block CLIP with OpenAI's names; norms stay float32 as in the releases."""
    import open_clip

    torch.manual_seed(seed)
    model = open_clip.model.CLIP(**CONFIG, quick_gelu=True)
    state = model.state_dict()
    for name, tensor in state.items():
        if tensor.ndim >= 2:
            state[name] = (0.1 * torch.randn_like(tensor)).to(dtype)
    return {name: tensor.clone() for name, tensor in state.items() if name != "attn_mask"}


def save_archive(path: Path, state: dict[str, torch.Tensor], numbers: dict[str, int] | None = None) -> Path:
    """A TorchScript archive whose parameters have these names."""
    root = Box()
    for name, value in (NUMBERS if numbers is None else numbers).items():
        root.register_buffer(name, torch.tensor(value))
    for name, tensor in state.items():
        *places, leaf = name.split(".")
        module = root
        for place in places:
            if place not in dict(module.named_children()):
                module.add_module(place, Box())
            module = module.get_submodule(place)
        module.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated; the releases are what they are
        torch.jit.script(root).save(str(path))
    return path
