"""What tensors say of a plain CLIP: its sizes, and from them the config that its weights came without.

Heads cannot be read from tensors. They come from the architecture of open_clip's registry that has these sizes, or, for
OpenAI's archives, from OpenAI's rule of 64 channels a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import BadInput
from ..weights import WeightId, block_count
from .preprocessing import preprocessing_of
from .registry import architectures_of, model_config

OPENAI_HEAD_WIDTH = 64
OPENAI_VOCABULARY = 49408
PLAIN = {  # what a plain CLIP's config says at most; the rest changes what is computed
    "": ("embed_dim", "quick_gelu", "custom_text", "init_logit_scale", "vision_cfg", "text_cfg"),
    "vision_cfg": ("image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio", "norm_kwargs"),
    "text_cfg": (
        "context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "norm_kwargs", "hf_tokenizer_name",
        "tokenizer_kwargs",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Bare:
    """What is known of bare weights.

    Attributes:
        config: open_clip's, with the activation decided.
        arch: The architecture's name, if it has one.
        preprocess: See `uwm.models.preprocessing`.
        notes: What a user should know.
    """

    config: dict[str, Any]
    arch: str | None
    preprocess: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def sizes_of(checkpoint: Checkpoint) -> dict[str, int]:
    """Sizes under open_clip's names, as far as the towers that are there tell them.

    Raises:
        BadInput: The checkpoint is no plain CLIP.
    """
    found: dict[str, int] = {}
    there = {tower.encoder.modality for tower in checkpoint.layout.towers}
    if checkpoint.layout.library == "open_clip" and len(there) < 2:
        raise BadInput(
            f"{checkpoint.path}: bare weights without a {' and '.join({'text', 'vision'} - there)} tower that uwm has "
            "names for, so its sizes are not known; pass --arch with open_clip's name, such as RN50-quickgelu"
        )
    for tower in checkpoint.layout.towers:
        if tower.encoder.family not in ("hf-clip", "open_clip"):
            raise BadInput(f"{checkpoint.path}: bare {tower.encoder.family} weights need their folder with its config")
        modality = tower.encoder.modality
        first = _shape(checkpoint, tower.name, {"text": "token_embedding", "vision": "patch_embedding"}[modality])
        positions = _shape(checkpoint, tower.name, "position_embedding")
        blocks = block_count(checkpoint.weights, tower.name)
        if first is None or positions is None or not blocks:
            raise BadInput(
                f"{checkpoint.path}: no plain CLIP ({tower.name} lacks some of its tensors); pass its folder"
            )
        found |= {f"{modality}_layers": blocks} | _tower(modality, first, positions)
    projection = _shape(checkpoint, "text", "proj")
    return found if projection is None else found | {"embed_dim": projection[0]}


def _shape(checkpoint: Checkpoint, tower: str, slot: str) -> tuple[int, ...] | None:
    name = WeightId(tower, None, slot)
    return checkpoint.info(name).shape if name in checkpoint.tensors else None


def _tower(modality: str, first: tuple[int, ...], positions: tuple[int, ...]) -> dict[str, int]:
    if modality == "text":
        return {"vocab_size": first[0], "context_length": positions[0], "text_width": first[1]}
    side = math.isqrt(positions[0] - 1)  # the class token has a position of its own
    return {"vision_width": first[0], "patch_size": first[-1], "image_size": side * first[-1]}


def describe(checkpoint: Checkpoint, arch: str | None, quick_gelu: bool | None, preprocess: str | None) -> Bare:
    """The architecture, the activation and the preprocessing of bare weights; none of them is guessed.

    The activation is OpenAI's for a TorchScript archive, else the flag's, else that of `arch`.

    Raises:
        BadInput: Activation, heads or preprocessing are not known, or two sources contradict each other.
    """
    where = checkpoint.path
    scripted = any(file.scripted for file in checkpoint.files)
    config = None if arch is None else model_config(arch)
    if arch is not None and config is None:
        raise BadInput(f"--arch {arch!r} is not known to open_clip; `open_clip.list_models()` lists the names")
    said = {"the TorchScript archive": True} if scripted else {}
    said |= {} if quick_gelu is None else {"--quick-gelu" if quick_gelu else "--no-quick-gelu": quick_gelu}
    said |= {f"--arch {arch}": config["quick_gelu"]} if config and "quick_gelu" in config else {}
    if len(set(said.values())) > 1:
        raise BadInput(f"{where}: {' and '.join(said)} contradict each other on the activation; drop one of them")
    if scripted and config is not None and "quick_gelu" not in config:
        raise BadInput(f"{where}: an OpenAI archive computes in QuickGELU, --arch {arch} in GELU; drop --arch")
    if not said and config is None:
        raise BadInput(
            f"{where}: bare weights do not say their activation; pass --quick-gelu or --no-quick-gelu, or --arch with "
            "an open_clip name that decides it, such as ViT-B-32 or ViT-B-32-quickgelu"
        )
    archs = [] if arch is None else [arch]
    if config is None:
        archs, config = _by_sizes(checkpoint, scripted)
    activation = next(iter(said.values()), False)
    prepared, notes = preprocessing_of(where, archs, activation, scripted, preprocess)
    return Bare({**config, "quick_gelu": activation}, archs[0] if archs else None, prepared, notes)


def _by_sizes(checkpoint: Checkpoint, scripted: bool) -> tuple[list[str], dict[str, Any]]:
    """The architectures of these sizes, the shortest name first, and the config that they share."""
    sizes = sizes_of(checkpoint)
    found = architectures_of(sizes)
    heads = {(c["vision_cfg"].get("head_width", 64), c["text_cfg"].get("heads", 8)) for c in found.values()}
    if len(heads) == 1:
        names = sorted(found, key=lambda name: (len(name), name))
        return names, found[names[0]]
    if scripted:
        return [], _openai_config(sizes)
    why, listed = "several architectures" if heads else "no architecture", [f"{k} {v}" for k, v in sizes.items()]
    raise BadInput(
        f"{checkpoint.path}: {why} of open_clip's registry with these sizes ({', '.join(listed)}), so the number of "
        "heads is not known; pass --arch, or the folder with its config"
    )


def _openai_config(sizes: dict[str, int]) -> dict[str, Any]:
    vision = {key: sizes[key] for key in ("image_size", "patch_size")}
    vision |= {"layers": sizes["vision_layers"], "width": sizes["vision_width"], "head_width": OPENAI_HEAD_WIDTH}
    text = {key: sizes[key] for key in ("context_length", "vocab_size")}
    text |= {"layers": sizes["text_layers"], "width": sizes["text_width"]}
    return {
        "embed_dim": sizes["embed_dim"],
        "vision_cfg": vision,
        "text_cfg": text | {"heads": max(1, sizes["text_width"] // OPENAI_HEAD_WIDTH)},
    }


def beyond_plain(config: dict[str, Any]) -> list[str]:
    """Keys of an open_clip config that transformers' CLIP has no counterpart of."""
    parts = {"": config, **{part: config[part] for part in PLAIN if part}}
    found = [key for part, keys in parts.items() for key in keys if key not in PLAIN[part]]
    return found if isinstance(config["vision_cfg"].get("layers", 12), int) else [*found, "layers"]
