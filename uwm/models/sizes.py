"""What tensors say of a plain CLIP: its sizes, and from them the config that its weights came without.

Heads cannot be read from tensors. They come from the architecture of open_clip's registry that has these sizes, or, for
OpenAI's archives, from OpenAI's rule of 64 channels a head.
"""

from __future__ import annotations

import math
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import BadInput
from ..weights import WeightId, block_count
from .registry import architectures_of, model_config

OPENAI_HEAD_WIDTH = 64
OPENAI_VOCABULARY = 49408


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


def config_of(checkpoint: Checkpoint, arch: str | None, quick_gelu: bool | None) -> tuple[dict[str, Any], str | None]:
    """open_clip's config for bare weights with the activation decided, and the architecture's name, if any.

    The activation is OpenAI's for a TorchScript archive, else the flag's, else that of `arch`; it is never guessed.

    Raises:
        BadInput: The activation or the heads are not known, or two sources contradict each other.
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
    if config is None:
        arch, config = _by_sizes(checkpoint, scripted)
    return {**config, "quick_gelu": next(iter(said.values()), False)}, arch


def _by_sizes(checkpoint: Checkpoint, scripted: bool) -> tuple[str | None, dict[str, Any]]:
    sizes = sizes_of(checkpoint)
    found = architectures_of(sizes)
    heads = {(c["vision_cfg"].get("head_width", 64), c["text_cfg"].get("heads", 8)) for c in found.values()}
    if len(heads) == 1:
        name = min(found, key=lambda name: (len(name), name))
        return name, found[name]
    if scripted:
        return None, _openai_config(sizes)
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
