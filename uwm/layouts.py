"""How each family spells every weight. A new family is a new row in TABLES."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .errors import BadInput
from .weights import WeightId, WeightRef


@dataclass(frozen=True)
class Layout:
    """One family's spelling.

    Attributes:
        name: What messages and manifests call it.
        towers: Tower -> prefix of its blocks, with ``{block}`` for the number.
        slots: Slot -> (suffix, part, parts); parts > 1 for a row block of a fused tensor.
        sentinels: Keys that only this family has, the test by which it is recognised.
        file_name: What the family's library looks for in a folder; a bare file of any name is written under it.
    """

    name: str
    towers: dict[str, str]
    slots: dict[str, tuple[str, int, int]]
    sentinels: tuple[str, ...]
    file_name: str


_HF_SLOTS = {
    "q_proj": ("self_attn.q_proj.weight", 0, 1),
    "k_proj": ("self_attn.k_proj.weight", 0, 1),
    "v_proj": ("self_attn.v_proj.weight", 0, 1),
    "out_proj": ("self_attn.out_proj.weight", 0, 1),
    "fc1": ("mlp.fc1.weight", 0, 1),
    "fc2": ("mlp.fc2.weight", 0, 1),
}
_OPEN_CLIP_SLOTS = {
    "q_proj": ("attn.in_proj_weight", 0, 3),
    "k_proj": ("attn.in_proj_weight", 1, 3),
    "v_proj": ("attn.in_proj_weight", 2, 3),
    "out_proj": ("attn.out_proj.weight", 0, 1),
    "fc1": ("mlp.c_fc.weight", 0, 1),
    "fc2": ("mlp.c_proj.weight", 0, 1),
}

TABLES = (
    Layout(
        "hf-clip",
        {"text": "text_model.encoder.layers.{block}.", "vision": "vision_model.encoder.layers.{block}."},
        _HF_SLOTS,
        ("vision_model.embeddings.class_embedding", "text_model.embeddings.token_embedding.weight"),
        "model.safetensors",
    ),
    Layout(
        "open_clip",
        {"text": "transformer.resblocks.{block}.", "vision": "visual.transformer.resblocks.{block}."},
        _OPEN_CLIP_SLOTS,
        ("visual.class_embedding", "token_embedding.weight"),
        "open_clip_model.safetensors",
    ),
    Layout(
        "open_clip-custom-text",
        {"text": "text.transformer.resblocks.{block}.", "vision": "visual.transformer.resblocks.{block}."},
        _OPEN_CLIP_SLOTS,
        ("visual.class_embedding", "text.token_embedding.weight"),
        "open_clip_model.safetensors",
    ),
)


def recognise(keys: Iterable[str], where: str) -> Layout:
    """The layout whose sentinel keys are all present.

    Args:
        keys: Tensor names.
        where: What to call the checkpoint in the error.

    Raises:
        BadInput: No layout fits; the message names the nearest one and keys that it misses.
    """
    present = set(keys)
    for layout in TABLES:
        if present.issuperset(layout.sentinels):
            return layout
    nearest = max(TABLES, key=lambda table: len(present.intersection(table.sentinels)))
    missing = [key for key in nearest.sentinels if key not in present]
    raise BadInput(
        f"{where}: not a CLIP-like checkpoint that uwm knows ({len(present)} tensors, such as "
        f"{', '.join(map(repr, sorted(present)[:3]))}); nearest layout {nearest.name} misses {', '.join(missing)}. "
        f"Known layouts: {', '.join(table.name for table in TABLES)}"
    )


def find_weights(layout: Layout, keys: Iterable[str]) -> dict[WeightId, WeightRef]:
    """Every editable weight that the keys spell, sorted by WeightId."""
    found = {}
    for key in keys:
        for tower, prefix in layout.towers.items():
            block_match = re.match(re.escape(prefix).replace(r"\{block\}", r"(\d+)"), key)
            if not block_match:
                continue
            rest = key[block_match.end() :]
            for slot, (suffix, part, parts) in layout.slots.items():
                if rest == suffix:
                    found[WeightId(tower, int(block_match[1]), slot)] = WeightRef(key, part, parts)
    return dict(sorted(found.items()))
