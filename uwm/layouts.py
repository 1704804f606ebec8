"""How each family spells every tensor that has a name. A new family is a new row in ENCODERS.

A checkpoint is recognised by its encoders, wherever they are: each row names keys that only this encoder has, and what
stands before them is the encoder's prefix. So CLIP's vision tower is found in a CLIP, alone, and inside LLaVA.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .errors import BadInput
from .weights import GATE, WeightId, WeightRef

Slots = dict[str, tuple[str, int, int]]  # slot -> (suffixes, part, parts); parts > 1 for a row block of a fused tensor
Keys = dict[str, str]  # slot -> key; where there are several, with spaces between them, the first that is there counts
BESIDE = "../"  # before a key that stands beside the encoder's prefix, as text_projection beside text_model


@dataclass(frozen=True)
class Encoder:
    """One family's spelling of one encoder. All keys are without the encoder's prefix.

    Attributes:
        family: What messages and manifests call it.
        modality: ``text`` or ``vision``.
        blocks: Prefix of its blocks, with ``{block}`` for the number.
        slots: How its blocks spell the matrix of each linear layer, with spaces between spellings of which a checkpoint
            has one; the bias is spelled alike.
        norms: How its blocks spell their LayerNorms.
        tensors: How it spells what the tower has outside the blocks.
        sentinels: Keys that together only this encoder has; of those with spaces between them one is there.
        library: Which library reads it, ``transformers`` or ``open_clip``.
        pools: Which output of the last block becomes the embedding: the ``first``, the ``last``, the ``end`` token (the
            last that the mask counts), or ``all`` of them.
        transposed: Keys of matrices that it stores as [in, out].
        deeper: Keys of layers between the pooled output and the embedding, beside LayerNorm and projection, or of a
            third one in the MLP, which multiplies the hidden units.
        alone: Whether it counts without an encoder of the other modality; a plain BERT is no CLIP.
    """

    family: str
    modality: str
    blocks: str
    slots: Slots
    norms: Keys
    tensors: Keys
    sentinels: tuple[str, ...]
    library: str
    pools: str
    transposed: tuple[str, ...] = ()
    deeper: tuple[str, ...] = ()
    alone: bool = True

    def spelled(self, prefix: str, blocks: Iterable[int]) -> Iterator[tuple[int | None, str, WeightRef]]:
        """Block, slot and place of everything that has a name, the most usual place of each first."""
        for block in blocks:
            inside = self.blocks.format(block=block)
            for slot, (suffixes, part, parts) in self.slots.items():
                for suffix in suffixes.split():
                    yield block, slot, WeightRef(prefix + inside + suffix, part, parts)
                    yield block, f"{slot}.bias", WeightRef(prefix + inside + _bias(suffix), part, parts)
            yield from ((block, slot, WeightRef(prefix + inside + key)) for slot, key in self.norms.items())
        for slot, keys in self.tensors.items():
            for key in keys.split():
                yield None, slot, WeightRef(whole_key(prefix, key), transposed=key in self.transposed)


def whole_key(prefix: str, key: str) -> str:
    """The whole key; each `BESIDE` takes the last part of the prefix away."""
    while key.startswith(BESIDE):
        prefix, key = re.sub(r"[^./]+\.$", "", prefix), key.removeprefix(BESIDE)
    return prefix + key


def _bias(weight: str) -> str:
    return f"{weight.removesuffix('weight')}bias"


def _slots(attention: tuple[str, str, str, str], mlp: tuple[str, str]) -> Slots:
    names = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    return {slot: (f"{suffix}.weight", 0, 1) for slot, suffix in zip(names, (*attention, *mlp), strict=True)}


def _fused(fused: str, out: str, mlp: tuple[str, str]) -> Slots:
    parts: Slots = {slot: (fused, part, 3) for part, slot in enumerate(("q_proj", "k_proj", "v_proj"))}
    return parts | {
        slot: (f"{s}.weight", 0, 1) for slot, s in zip(("out_proj", "fc1", "fc2"), (out, *mlp), strict=True)
    }


def _with_bias(modules: Keys) -> Keys:
    """Weight and bias of modules."""
    weights = {slot: " ".join(f"{name}.weight" for name in names.split()) for slot, names in modules.items()}
    return weights | {f"{slot}.bias": " ".join(map(_bias, keys.split())) for slot, keys in weights.items()}


_HF = _slots(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"), ("mlp.fc1", "mlp.fc2"))
_BERT = _slots(
    ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    ("intermediate.dense", "output.dense"),
)
_T5 = _slots(
    tuple(f"layer.0.SelfAttention.{part}" for part in "qkvo"),  # type: ignore[arg-type]
    ("layer.1.DenseReluDense.wi_1", "layer.1.DenseReluDense.wo"),
) | {GATE: ("layer.1.DenseReluDense.wi_0.weight", 0, 1)}
_M2M100 = _slots(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"), ("fc1", "fc2"))
_OPEN_CLIP = _fused("attn.in_proj_weight", "attn.out_proj", ("mlp.c_fc", "mlp.c_proj"))
# A gated MLP of timm is fc2(act(fc1_g x) * fc1_x x) in EVA02 and w2(act(w0 x) * w1 x) in ViTamin.
_TIMM_MLP: Slots = {
    "fc1": ("mlp.fc1.weight mlp.fc1_x.weight mlp.w1.weight", 0, 1),
    "fc2": ("mlp.fc2.weight mlp.w2.weight", 0, 1),
    GATE: ("mlp.fc1_g.weight mlp.w0.weight", 0, 1),
}
_TIMM = _fused("attn.qkv.weight", "attn.proj", ("mlp.fc1", "mlp.fc2")) | _TIMM_MLP
_TIMM_SPLIT = _slots(("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.proj"), ("mlp.fc1", "mlp.fc2")) | _TIMM_MLP
_HF_NORMS = _with_bias({"norm1": "layer_norm1", "norm2": "layer_norm2"})
_BERT_NORMS = _with_bias({"norm1": "attention.output.LayerNorm", "norm2": "output.LayerNorm"})  # after, not before
_OPEN_CLIP_NORMS = _with_bias({"norm1": "ln_1", "norm2": "ln_2"})
_TIMM_NORMS = _with_bias({"norm1": "norm1", "norm2": "norm2"})
_HF_TEXT = {
    "token_embedding": "embeddings.token_embedding.weight",
    "position_embedding": "embeddings.position_embedding.weight",
} | _with_bias({"norm": "final_layer_norm"})
_HF_VISION = {
    "patch_embedding": "embeddings.patch_embedding.weight",
    "position_embedding": "embeddings.position_embedding.weight",
} | _with_bias({"norm": "post_layernorm"})
_FC1 = "encoder.layers.0.mlp.fc1.weight"
_TEXT = ("embeddings.token_embedding.weight", "final_layer_norm.weight")
_HF_LAYERS, _RESBLOCKS = "encoder.layers.{block}.", "transformer.resblocks.{block}."
# A ViT of timm cuts its patches with one convolution, with the stem of ViTamin or of MobileCLIP-B, or as NaFlex does.
_PATCHES = (
    "patch_embed.proj.weight patch_embed.backbone.stem.conv1.weight patch_embed.backbone.0.conv.weight "
    "embeds.proj.weight"
)


def _timm(slots: Slots, query: str) -> Encoder:
    """A ViT of timm; `query` is where a block's queries come from."""
    return Encoder(
        "timm", "vision", "blocks.{block}.", slots, _TIMM_NORMS,
        _with_bias({
            "patch_embedding": "patch_embed.proj embeds.proj", "pre_norm": "norm_pre", "norm": "norm fc_norm",
            "head.norm": "attn_pool.norm", "head.fc1": "attn_pool.mlp.fc1", "head.fc2": "attn_pool.mlp.fc2",
            "proj": "../head.proj head",
        }) | {"class_embedding": "cls_token embeds.cls_token", "position_embedding": "pos_embed embeds.pos_embed"},
        (_PATCHES, f"blocks.0.{query}.weight"), "open_clip", "all",
        deeper=("../head.mlp.fc1.weight",), alone=False,
    )  # fmt: skip


ENCODERS = (  # where two fit, the first counts
    Encoder(
        "hf-siglip", "text", _HF_LAYERS, _HF, _HF_NORMS, _HF_TEXT | _with_bias({"proj": "head"}),
        (*_TEXT, "head.weight"), "transformers", "last",
    ),
    Encoder(
        "hf-clip", "text", _HF_LAYERS, _HF, _HF_NORMS, _HF_TEXT | {"proj": "../text_projection.weight"},
        _TEXT, "transformers", "end",
    ),
    Encoder(
        "hf-clip", "vision", _HF_LAYERS, _HF, _HF_NORMS,
        _HF_VISION | _with_bias({"pre_norm": "pre_layrnorm"})
        | {
            "class_embedding": "embeddings.class_embedding",
            "proj": "../visual_projection.weight ../../visual_projection.weight",
        },
        ("embeddings.class_embedding", _FC1), "transformers", "first",
    ),
    Encoder(
        "hf-siglip", "vision", _HF_LAYERS, _HF, _HF_NORMS,
        _HF_VISION | {"patch_embedding.bias": "embeddings.patch_embedding.bias"}
        | _with_bias({"head.norm": "head.layernorm", "head.fc1": "head.mlp.fc1", "head.fc2": "head.mlp.fc2"}),
        ("embeddings.patch_embedding.bias", _FC1), "transformers", "all",
    ),
    Encoder(
        "hf-bert", "text", "encoder.layer.{block}.", _BERT, _BERT_NORMS,
        _with_bias({"pre_norm": "embeddings.LayerNorm"})
        | {
            "token_embedding": "embeddings.word_embeddings.weight",
            "position_embedding": "embeddings.position_embeddings.weight",
            "proj": "../text_projection.weight ../proj.weight",
        },
        ("embeddings.word_embeddings.weight", "encoder.layer.0.attention.self.query.weight"), "transformers", "first",
        deeper=("pooler.dense.weight", "../proj.0.weight"), alone=False,
    ),
    Encoder(  # open_clip's text tower of an mT5
        "mt5", "text", "transformer.block.{block}.", _T5,
        _with_bias({"norm1": "layer.0.layer_norm", "norm2": "layer.1.layer_norm"}),
        {
            "token_embedding": "transformer.embed_tokens.weight", "norm": "transformer.final_layer_norm.weight",
            "proj": "proj.weight",
        },
        ("transformer.block.0.layer.0.SelfAttention.q.weight", "transformer.embed_tokens.weight"), "open_clip", "all",
        deeper=("proj.0.weight",), alone=False,
    ),
    Encoder(  # open_clip's text tower of an M2M-100, which NLLB is
        "m2m-100", "text", "transformer.layers.{block}.", _M2M100,
        _with_bias({"norm1": "self_attn_layer_norm", "norm2": "final_layer_norm"}),
        {"token_embedding": "transformer.embed_tokens.weight", "proj": "proj.weight"}
        | _with_bias({"norm": "transformer.layer_norm"}),
        ("transformer.layers.0.self_attn.q_proj.weight", "transformer.embed_tokens.weight"), "open_clip", "first",
        deeper=("proj.0.weight",), alone=False,
    ),
    Encoder(
        "open_clip", "text", _RESBLOCKS, _OPEN_CLIP, _OPEN_CLIP_NORMS,
        _with_bias({"norm": "ln_final"})
        | {
            "token_embedding": "token_embedding.weight", "position_embedding": "positional_embedding",
            "class_embedding": "cls_emb",
            "proj": "text_projection text_projection.weight", "proj.bias": "text_projection.bias",
        },
        ("token_embedding.weight", "ln_final.weight"), "open_clip", "end", transposed=("text_projection",),
    ),
    Encoder(
        "open_clip", "vision", _RESBLOCKS, _OPEN_CLIP, _OPEN_CLIP_NORMS,
        _with_bias({"pre_norm": "ln_pre", "norm": "ln_post"})
        | {
            "class_embedding": "class_embedding", "patch_embedding": "conv1.weight",
            "position_embedding": "positional_embedding", "proj": "proj",
        },
        ("class_embedding", "conv1.weight"), "open_clip", "first", transposed=("proj",),
    ),
    _timm(_TIMM, "attn.qkv"),
    _timm(_TIMM_SPLIT, "attn.q_proj"),
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
            if prefix not in found and all(
                any(prefix + key in present for key in sentinel.split()) for sentinel in encoder.sentinels
            ):
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
    ends = {key.removesuffix(end) for end in sentinel.split() for key in keys if key.endswith(end)}
    return sorted(prefix for prefix in ends if not prefix or prefix[-1] in "./")


def _unknown(keys: set[str], where: str) -> str:
    def held(encoder: Encoder) -> int:
        return sum(bool(_prefixes(keys, sentinel)) for sentinel in encoder.sentinels)

    nearest = max(ENCODERS, key=held)
    missing = [sentinel.split()[0] for sentinel in nearest.sentinels if not _prefixes(keys, sentinel)]
    other = "vision" if nearest.modality == "text" else "text"
    lacks = f"misses …{', …'.join(missing)}" if missing else f"counts only beside a {other} tower that uwm knows"
    families = ", ".join(dict.fromkeys(encoder.family for encoder in ENCODERS))
    return (
        f"{where}: not a CLIP-like checkpoint that uwm knows ({len(keys)} tensors, such as "
        f"{', '.join(map(repr, sorted(keys)[:3]))}); the nearest, {nearest.family} {nearest.modality}, {lacks}. "
        f"Known families: {families}"
    )


def spelled(family: str, modality: str, prefix: str, blocks: Iterable[int]) -> dict[tuple[int | None, str], WeightRef]:
    """Block and slot -> the most usual place, of everything that an encoder of this family may hold."""
    encoder = next(e for e in ENCODERS if (e.family, e.modality) == (family, modality))
    found: dict[tuple[int | None, str], WeightRef] = {}
    for block, slot, ref in encoder.spelled(prefix, blocks):
        found.setdefault((block, slot), ref)
    return found


def of_blocks(keys: Iterable[str]) -> list[str]:
    """Those keys that can be of a block of any encoder, whatever stands before it; sorted."""
    spelt = {re.escape(encoder.blocks).replace(r"\{block\}", r"\d+") for encoder in ENCODERS}
    pattern = re.compile("|".join(sorted(spelt)))
    return sorted(key for key in keys if pattern.search(key))


def find_tensors(layout: Layout, keys: Iterable[str]) -> dict[WeightId, WeightRef]:
    """Everything with a name that the keys spell, sorted by WeightId."""
    present = set(keys)
    found: dict[WeightId, WeightRef] = {}
    for tower in layout.towers:
        pattern = re.compile(re.escape(tower.prefix + tower.encoder.blocks).replace(r"\{block\}", r"(\d+)"))
        blocks = {int(match[1]) for match in map(pattern.match, present) if match}
        for block, slot, ref in tower.encoder.spelled(tower.prefix, blocks):
            if ref.key in present:
                found.setdefault(WeightId(tower.name, block, slot), ref)
    return dict(sorted(found.items()))


def find_weights(layout: Layout, keys: Iterable[str]) -> dict[WeightId, WeightRef]:
    """Of `find_tensors` the matrices of the blocks' linear layers: what entry editors choose from."""
    return {weight: ref for weight, ref in find_tensors(layout, keys).items() if weight.is_matrix_of_block}
