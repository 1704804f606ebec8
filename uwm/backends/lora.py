"""LoRA by peft: put into a student, taken out as a few tensors, merged into a plain checkpoint."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..cache import PROBE_TEXTS
from ..checkpoint import write_edited
from ..errors import BadInput, InvalidResult
from ..models import HuggingFaceModel, Model
from ..models.student import added, hugging_face_copy
from ..statistics.batches import embed_inputs
from .protocol import TrainingSettings

NAME = "default"  # peft's name of an adapter
EXTRA = "peft is not installed, and fine-tuning needs it; `pip install 'uwm[train]'`"
ROUNDING = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 1e-2}  # relative, of embeddings; else 0.1


@dataclass(frozen=True)
class Adapter:
    """What training made: LoRA's matrices by peft's names, float32 on the CPU, and the settings that they fit."""

    tensors: dict[str, torch.Tensor] = field(repr=False)
    settings: TrainingSettings


def check_installed() -> None:
    """Refuse to start without peft. Raises BadInput."""
    try:
        import peft  # noqa: F401
    except ImportError:
        raise BadInput(EXTRA) from None


def own_draws(device: torch.device) -> AbstractContextManager[None]:
    """What is seeded and drawn in this block leaves the global generators as they were."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def insert(student: HuggingFaceModel, settings: TrainingSettings, seed: int) -> dict[str, torch.Tensor]:
    """Put fresh LoRA layers into a student, drawn with the seed.

    Returns:
        Name -> parameter to train, sorted; all others stay frozen.

    Raises:
        BadInput: A target names no layer, or peft is missing.
    """
    check_installed()
    from peft import LoraConfig, inject_adapter_in_model

    there = {name.rpartition(".")[2] for name, module in student.module.named_modules() if hasattr(module, "weight")}
    if unknown := sorted(set(settings.targets) - there):
        raise BadInput(f"--targets {unknown[0]!r}: no layer has this name; expected some of {', '.join(sorted(there))}")
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
    )
    with own_draws(student.device):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, student.module, adapter_name=NAME)
    student.module.eval()  # peft's new layers come in train mode
    return {name: p for name, p in sorted(student.module.named_parameters()) if p.requires_grad}


def put_back(student: HuggingFaceModel, tensors: dict[str, torch.Tensor]) -> None:
    """Copy LoRA matrices into the student, by name."""
    own = dict(student.module.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def student_of(model: Model, adapter: Adapter) -> HuggingFaceModel:
    """A fresh student with an adapter in it."""
    student = hugging_face_copy(model)
    insert(student, adapter.settings, seed=0)
    put_back(student, adapter.tensors)
    return student


def write_trained(model: Model, adapter: Adapter, folder: Path) -> dict[str, str]:
    """Merge an adapter into the model's checkpoint and write it, in the input's layout, names and dtypes.

    What was not adapted is the input's bit for bit. The embeddings of the merged weights are compared with those of
    the student before anything is written.

    Args:
        model: What was fine-tuned, as loaded.
        adapter: From `train`.
        folder: An existing, empty folder.

    Returns:
        sha256 of every weight file written, by name.

    Raises:
        InvalidResult: The merged weights are not finite, or compute something else than the student.
    """
    assert model.checkpoint is not None
    student = student_of(model, adapter)
    replaced = added(model, _deltas(student))
    _compare(model, student, replaced)
    hashes = write_edited(model.checkpoint, {}, folder, replaced=replaced, with_config=True)
    model.write_side_files(folder)
    return hashes


def _deltas(student: HuggingFaceModel) -> dict[str, torch.Tensor]:
    """What every adapted layer adds to its weight, by the weight's name in the Hugging Face layout."""
    from peft.tuners.lora import LoraLayer

    layers: list[tuple[str, Any]] = [(n, m) for n, m in student.module.named_modules() if isinstance(m, LoraLayer)]
    with torch.no_grad():
        return {f"{name}.weight": layer.get_delta_weight(NAME) for name, layer in sorted(layers, key=lambda x: x[0])}


@torch.no_grad()
def _compare(model: Model, student: HuggingFaceModel, replaced: dict[str, torch.Tensor]) -> None:
    """The merged checkpoint, rounded as it is stored, must give the student's embeddings of some inputs."""
    merged = hugging_face_copy(model, replaced)
    generator = torch.Generator().manual_seed(0)
    side = student.config.vision_config.image_size
    pixels = torch.randn(2, 3, side, side, generator=generator)
    ids, tokens = model.tokenize(PROBE_TEXTS)
    tolerance = max(ROUNDING.get(tensor.dtype, 0.1) for tensor in replaced.values())
    for what, inputs, mask in (("image", pixels, None), ("text", ids, tokens)):
        ours, theirs = (embed_inputs(side, inputs, mask).double() for side in (merged, student))
        off = ((ours - theirs).norm() / theirs.norm()).item()
        if not off < tolerance:
            raise InvalidResult(f"the merged weights' {what} embeddings are {off:.1e} off the fine-tuned model's")
