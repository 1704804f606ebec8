"""Hugging Face CLIP weights spelt as open_clip's, written out by hand: the yardstick for layouts.py."""

from __future__ import annotations

import torch

OUTSIDE_BLOCKS = {
    "logit_scale": "logit_scale",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
}
IN_BLOCKS = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip


def to_open_clip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors under open_clip's names, with q, k and v fused."""
    result = {new: state[old].clone() for old, new in OUTSIDE_BLOCKS.items()}
    result["text_projection"] = state["text_projection.weight"].T.contiguous()
    result["visual.proj"] = state["visual_projection.weight"].T.contiguous()
    for old_prefix, new_prefix in (("text_model", "transformer"), ("vision_model", "visual.transformer")):
        block = 0
        while f"{old_prefix}.encoder.layers.{block}.layer_norm1.weight" in state:
            old, new = f"{old_prefix}.encoder.layers.{block}", f"{new_prefix}.resblocks.{block}"
            for kind in ("weight", "bias"):
                for a, b in IN_BLOCKS.items():
                    result[f"{new}.{b}.{kind}"] = state[f"{old}.{a}.{kind}"].clone()
                fused = [state[f"{old}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                result[f"{new}.attn.in_proj_{kind}"] = torch.cat(fused)
            block += 1
    return result
