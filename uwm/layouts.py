"""How each family spells every weight. A new family is a new row in ENCODERS.

A checkpoint is recognised by its encoders, wherever they are: each row names keys that only this encoder has, and what
stands before them is the encoder's prefix. So CLIP's vision tower is found in a CLIP, alone, and inside LLaVA.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .errors import BadInput
from .weights import WeightId, WeightRef

Slots = dict[str, tuple[str, int, int]]  # slot -> (suffix, part, parts); parts > 1 for a row block of a fused tensor


@dataclass(frozen=True)
class Encoder:
    """One family's spelling of one encoder.

    Attributes:
        family: What messages and manifests call it.
        modality: ``text`` or ``vision``.
        blocks: Prefix of its blocks, with ``{block}`` for the number.
        slots: How its blocks spell each slot.
        sentinels: Keys that together only this encoder has.
        library: Which library reads it, ``transformers`` or ``open_clip``.
        alone: Whether it counts without an encoder of the other modality; a plain BERT is no CLIP.
    """

    family: str
    modality: str
    blocks: str
    slots: Slots
    sentinels: tuple[str, ...]
    library: str
    alone: bool = True


def _slots(attention: tuple[str, str, str, str], mlp: tuple[str, str]) -> Slots:
    names = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    return {slot: (f"{suffix}.weight", 0, 1) for slot, suffix in zip(names, (*attention, *mlp), strict=True)}


def _fused(fused: str, out: str, mlp: tuple[str, str]) -> Slots:
    parts: Slots = {slot: (fused, part, 3) for part, slot in enumerate(("q_proj", "k_proj", "v_proj"))}
    return parts | {
        slot: (f"{s}.weight", 0, 1) for slot, s in zip(("out_proj", "fc1", "fc2"), (out, *mlp), strict=True)
    }


_HF = _slots(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"), ("mlp.fc1", "mlp.fc2"))
_BERT = _slots(
    ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    ("intermediate.dense", "output.dense"),
)
_OPEN_CLIP = _fused("attn.in_proj_weight", "attn.out_proj", ("mlp.c_fc", "mlp.c_proj"))
_TIMM = _fused("attn.qkv.weight", "attn.proj", ("mlp.fc1", "mlp.fc2"))
_FC1 = "encoder.layers.0.mlp.fc1.weight"
_TEXT = ("embeddings.token_embedding.weight", "final_layer_norm.weight")
_HF_LAYERS, _RESBLOCKS = "encoder.layers.{block}.", "transformer.resblocks.{block}."

ENCODERS = (  # where two fit, the first counts
    Encoder("hf-siglip", "text", _HF_LAYERS, _HF, (*_TEXT, "head.weight"), "transformers"),
    Encoder("hf-clip", "text", _HF_LAYERS, _HF, _TEXT, "transformers"),
    Encoder("hf-clip", "vision", _HF_LAYERS, _HF, ("embeddings.class_embedding", _FC1), "transformers"),
    Encoder("hf-siglip", "vision", _HF_LAYERS, _HF, ("embeddings.patch_embedding.bias", _FC1), "transformers"),
    Encoder(
        "hf-bert", "text", "encoder.layer.{block}.", _BERT,
        ("embeddings.word_embeddings.weight", "encoder.layer.0.attention.self.query.weight"), "transformers",
        alone=False,
    ),
    Encoder("open_clip", "text", _RESBLOCKS, _OPEN_CLIP, ("token_embedding.weight", "ln_final.weight"), "open_clip"),
    Encoder("open_clip", "vision", _RESBLOCKS, _OPEN_CLIP, ("class_embedding", "conv1.weight"), "open_clip"),
    Encoder(
        "timm", "vision", "blocks.{block}.", _TIMM,
        ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight"), "open_clip", alone=False,
    ),
)  # fmt: skip
FILE_NAMES = {"transformers": "model.safetensors", "open_clip": "open_clip_model.safetensors"}


@dataclass(frozen=True)
class Tower:
    """An encoder found in a checkpoint: its canonical name (``text``, ``vision``, ``text_2``) and its keys' prefix."""

    name: str
    encoder: Encoder
    prefix: str


@dataclass(frozen=True)
class Layout:
    """The encoders of one checkpoint."""

    towers: tuple[Tower, ...]

    @property
    def name(self) -> str:
        """What messages and manifests call it: ``hf-clip``, or ``hf-clip (vision)`` where a tower is missing."""
        families = " + ".join(dict.fromkeys(tower.encoder.family for tower in self.towers))
        modalities = {tower.encoder.modality for tower in self.towers}
        return families if len(modalities) > 1 else f"{families} ({', '.join(t.name for t in self.towers)})"

    @property
    def library(self) -> str:
        """Which library reads it."""
        libraries = {tower.encoder.library for tower in self.towers}
        return "open_clip" if "open_clip" in libraries else "transformers"

    @property
    def file_name(self) -> str:
        """What that library looks for in a folder; a bare file of any name is written under it."""
        return FILE_NAMES[self.library]

    def tower(self, name: str) -> Tower | None:
        """A tower by its canonical name."""
        return next((tower for tower in self.towers if tower.name == name), None)


def recognise(keys: Iterable[str], where: str) -> Layout:
    """The encoders whose sentinel keys are present, in the order of their names.

    Args:
        keys: Tensor names.
        where: What to call the checkpoint in the error.

    Raises:
        BadInput: None is there; the message names the nearest one and keys that it misses.
    """
    present = set(keys)
    found: dict[str, Encoder] = {}
    for encoder in ENCODERS:
        for prefix in _prefixes(present, encoder.sentinels[0]):
            if prefix not in found and present.issuperset(prefix + sentinel for sentinel in encoder.sentinels):
                found[prefix] = encoder
    modalities = {encoder.modality for encoder in found.values() if encoder.alone}
    towers = []
    for modality in ("text", "vision"):
        fitting = [
            p for p, e in sorted(found.items()) if e.modality == modality and (e.alone or modalities - {modality})
        ]
        for number, prefix in enumerate(fitting):
            towers.append(Tower(modality if number == 0 else f"{modality}_{number + 1}", found[prefix], prefix))
    if not towers:
        raise BadInput(_unknown(present, where))
    return Layout(tuple(towers))


def _prefixes(keys: set[str], sentinel: str) -> list[str]:
    """What stands before a sentinel key wherever it ends a key, whole names only."""
    ends = (key[: -len(sentinel)] for key in keys if key.endswith(sentinel))
    return sorted(prefix for prefix in ends if not prefix or prefix[-1] in "./")


def _unknown(keys: set[str], where: str) -> str:
    def held(encoder: Encoder) -> int:
        return sum(bool(_prefixes(keys, sentinel)) for sentinel in encoder.sentinels)

    nearest = max(ENCODERS, key=held)
    missing = [sentinel for sentinel in nearest.sentinels if not _prefixes(keys, sentinel)]
    lacks = f"misses …{', …'.join(missing)}" if missing else "is not whole"
    families = ", ".join(dict.fromkeys(encoder.family for encoder in ENCODERS))
    return (
        f"{where}: not a CLIP-like checkpoint that uwm knows ({len(keys)} tensors, such as "
        f"{', '.join(map(repr, sorted(keys)[:3]))}); the nearest, {nearest.family} {nearest.modality}, {lacks}. "
        f"Known families: {families}"
    )


def find_weights(layout: Layout, keys: Iterable[str]) -> dict[WeightId, WeightRef]:
    """Every editable weight that the keys spell, sorted by WeightId."""
    keys, found = list(keys), {}
    for tower in layout.towers:
        pattern = re.compile(re.escape(tower.prefix + tower.encoder.blocks).replace(r"\{block\}", r"(\d+)"))
        for key in keys:
            if not (block := pattern.match(key)):
                continue
            rest = key[block.end() :]
            for slot, (suffix, part, parts) in tower.encoder.slots.items():
                if rest == suffix:
                    found[WeightId(tower.name, int(block[1]), slot)] = WeightRef(key, part, parts)
    return dict(sorted(found.items()))
