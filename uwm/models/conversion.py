"""A plain CLIP from one library's spelling to the other's: names, fused projections, transposed matrices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ..checkpoint import Checkpoint, LazyTensor, write_tensors
from ..errors import BadInput
from ..weights import block_count


@dataclass(frozen=True)
class Rule:
    """One tensor of open_clip and its equal in Hugging Face's spelling: the same, transposed, or fused of three."""

    hugging_face: tuple[str, ...]
    open_clip: str
    transposed: bool = False


_BLOCK = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip
_TEXT = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_VISION = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm.weight": "ln_pre.weight",
    "pre_layrnorm.bias": "ln_pre.bias",
    "post_layernorm.weight": "ln_post.weight",
    "post_layernorm.bias": "ln_post.bias",
}


def rules(text_layers: int, vision_layers: int, text_prefix: str = "") -> Iterator[Rule]:
    """Every tensor of a plain CLIP; `text_prefix` is ``text.`` in open_clip's CustomTextCLIP."""
    yield Rule(("logit_scale",), "logit_scale")
    yield Rule(("text_projection.weight",), f"{text_prefix}text_projection", transposed=True)
    yield Rule(("visual_projection.weight",), "visual.proj", transposed=True)
    for theirs, ours, table, layers in (
        ("text_model.", text_prefix, _TEXT, text_layers),
        ("vision_model.", "visual.", _VISION, vision_layers),
    ):
        yield from (Rule((theirs + old,), ours + new) for old, new in table.items())
        for block in range(layers):
            old, new = f"{theirs}encoder.layers.{block}.", f"{ours}transformer.resblocks.{block}."
            for kind in ("weight", "bias"):
                yield from (Rule((f"{old}{a}.{kind}",), f"{new}{b}.{kind}") for a, b in _BLOCK.items())
                yield Rule(tuple(f"{old}self_attn.{p}_proj.{kind}" for p in "qkv"), f"{new}attn.in_proj_{kind}")


def convert(checkpoint: Checkpoint, to: str, target: Path) -> None:
    """Write a plain CLIP's weights in the other spelling, tensor by tensor.

    Args:
        checkpoint: Of transformers' or open_clip's spelling.
        to: ``"hf"`` or ``"open_clip"``.
        target: The safetensors file to write.

    Raises:
        BadInput: It has tensors that a plain CLIP has not, or lacks some.
    """
    write_tensors(target, dict(converted(checkpoint, plain_clip(checkpoint, to), to)))


def plain_clip(checkpoint: Checkpoint, to: str) -> list[Rule]:
    """The rules that spell this checkpoint; raises as `convert`."""
    layers = {modality: block_count(checkpoint.weights, modality) for modality in ("text", "vision")}
    text = checkpoint.layout.tower("text")
    prefix = text.prefix if text is not None and to == "hf" else ""
    table = list(rules(layers["text"], layers["vision"], prefix))
    used = {name for rule in table for name in ((rule.open_clip,) if to == "hf" else rule.hugging_face)}
    present = {key for key in checkpoint.entries if not key.endswith("position_ids")}
    if used != present:
        odd = sorted(used ^ present)
        word = "lacks" if odd[0] in used else "has"
        raise BadInput(
            f"{checkpoint.path}: no plain CLIP, it {word} {odd[0]}, so it cannot be spelled in the other layout"
        )
    return table


def converted(checkpoint: Checkpoint, table: list[Rule], to: str) -> Iterator[tuple[str, LazyTensor]]:
    """New name -> its dtype, shape and how to make it."""
    for rule in table:
        if to == "open_clip":
            yield rule.open_clip, _fused(checkpoint, rule)
        else:
            for part, name in enumerate(rule.hugging_face):
                yield name, _part(checkpoint, rule, part)


def _fused(checkpoint: Checkpoint, rule: Rule) -> LazyTensor:
    infos = [checkpoint.entries[name][1] for name in rule.hugging_face]
    first = infos[0].shape
    shape = (
        first[::-1] if rule.transposed else (sum(i.shape[0] for i in infos), *first[1:]) if len(infos) > 1 else first
    )

    def make() -> torch.Tensor:
        parts = [checkpoint.read(name) for name in rule.hugging_face]
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        return whole.T if rule.transposed else whole

    return infos[0].dtype, shape, make


def _part(checkpoint: Checkpoint, rule: Rule, part: int) -> LazyTensor:
    info, parts = checkpoint.entries[rule.open_clip][1], len(rule.hugging_face)
    shape = info.shape[::-1] if rule.transposed else info.shape
    shape = (shape[0] // parts, *shape[1:]) if parts > 1 else shape

    def make() -> torch.Tensor:
        whole = checkpoint.read(rule.open_clip)
        whole = whole.T if rule.transposed else whole
        return whole.chunk(parts)[part] if parts > 1 else whole

    return info.dtype, shape, make
