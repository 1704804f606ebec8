"""A plain CLIP of any layout as a Hugging Face module to train, and the way of its changes back into the checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from ..checkpoint import Checkpoint
from ..errors import BadInput, InvalidResult
from ..weights import WeightRef
from .bare import clip_config
from .base import Model
from .conversion import converted, plain_clip
from .filling import fill, stored_names
from .hugging_face import HuggingFaceModel
from .open_clip_models import OpenClipModel


def check_trainable(model: Model) -> None:
    """Refuse what is no plain CLIP with both towers. Raises BadInput."""
    families = {tower.encoder.family for tower in model.layout.towers}
    if families not in ({"hf-clip"}, {"open_clip"}) or set(model.editable) != {"text", "vision"}:
        raise BadInput(f"fine-tuning is for a plain CLIP with both towers; this is {model.layout.name}")
    if model.checkpoint is None:
        raise BadInput("fine-tuning needs a model that was loaded from a checkpoint")
    model.check_as_stored("fine-tuning")
    if isinstance(model, OpenClipModel):
        plain_clip(model.checkpoint, "hf")


def hugging_face_copy(model: Model, replaced: Mapping[str, torch.Tensor] | None = None) -> HuggingFaceModel:
    """The stored model anew in the Hugging Face layout, float32, in eval mode: it shares no memory with `model`.

    Args:
        model: Loaded from a checkpoint.
        replaced: Key in the checkpoint -> another tensor to put in its place, as `added` gives them.

    Raises:
        BadInput: No plain CLIP.
    """
    from transformers import CLIPModel

    check_trainable(model)
    assert model.checkpoint is not None
    with torch.random.fork_rng(devices=[]):  # of the random weights that a module is made with
        module = CLIPModel(_config(model))
    if isinstance(model, HuggingFaceModel):
        fill(module, model.checkpoint)
    else:
        tensors = converted(model.checkpoint, plain_clip(model.checkpoint, "hf"), "hf")
        module.load_state_dict({name: make() for name, (_, _, make) in tensors})
    own, where = dict(module.named_parameters()), places(model) if replaced else {}
    with torch.no_grad():
        for name, place in where.items():
            if replaced and place.key in replaced:
                own[name].copy_(place.of(replaced[place.key]))
    module.set_attn_implementation("eager")  # of short sequences: on a CPU faster than the fused kernel's backward
    return HuggingFaceModel(module.float().to(model.device).requires_grad_(False), None)


def _config(model: Model) -> Any:
    if isinstance(model, HuggingFaceModel):
        return copy.deepcopy(model.config)
    assert isinstance(model, OpenClipModel)
    return clip_config(model.config | {"quick_gelu": model.quick_gelu})


def recompute_activations(student: HuggingFaceModel) -> None:
    """Keep no activations of a block for the backward pass: less memory for more time (gradient checkpointing)."""
    module: Any = student.module
    # transformers 5 renamed it
    enable = getattr(module, "activation_checkpointing_enable", None) or module.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def places(model: Model) -> dict[str, WeightRef]:
    """Name of a tensor of `hugging_face_copy` -> where it lies in the model's checkpoint."""
    assert model.checkpoint is not None
    if isinstance(model, HuggingFaceModel):
        names = stored_names(model.module, model.checkpoint)
        return {name: WeightRef(key) for key, name in names.items()}
    table = plain_clip(model.checkpoint, "hf")
    return {name: ref for rule in table for name, ref in rule.places().items()}


def added(model: Model, deltas: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The stored tensors after adding deltas, computed in float32 and rounded once to the stored dtype.

    Args:
        model: Whose checkpoint it is.
        deltas: Name in the Hugging Face layout -> what to add, in that layout's shape.

    Returns:
        Key in the checkpoint -> the new tensor.

    Raises:
        InvalidResult: A sum is not finite in the stored dtype.
    """
    checkpoint, where = model.checkpoint, places(model)
    assert checkpoint is not None
    sums: dict[str, torch.Tensor] = {}
    for name, delta in deltas.items():
        place = where[name]
        whole = sums.setdefault(place.key, checkpoint.read(place.key).to(torch.float32, copy=True))
        place.of(whole).add_(delta.cpu().float())
    return {key: _rounded(checkpoint, key, tensor) for key, tensor in sums.items()}


def _rounded(checkpoint: Checkpoint, key: str, tensor: torch.Tensor) -> torch.Tensor:
    stored = tensor.to(checkpoint.entries[key][1].dtype.torch)
    if not torch.isfinite(stored).all():
        raise InvalidResult(f"{key}: the fine-tuned weights are not finite as {stored.dtype}; lower the learning rate")
    return stored
