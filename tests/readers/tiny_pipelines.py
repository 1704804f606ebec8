"""A tiny random Stable Diffusion XL that diffusers can draw with."""

from __future__ import annotations

import torch
from families import shaken
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from uwm.shipped_files import DEMO_GENERATOR

TEXT = {"vocab_size": 1214, "max_position_embeddings": 32, "bos_token_id": 1212, "eos_token_id": 1213,
        "pad_token_id": 1213, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2,
        "num_hidden_layers": 2, "projection_dim": 24}  # fmt: skip


def make_xl(folder, seed=0):
    """Its text encoders are drawn with the seed, all else is equal."""
    import diffusers

    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, sample_size=8, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4, cross_attention_dim=64, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    tokenizer = CLIPTokenizer.from_pretrained(DEMO_GENERATOR / "tokenizer")
    encoders = [
        shaken(kind(CLIPTextConfig(**TEXT)), seed=seed + 10 * number)
        for number, kind in enumerate((CLIPTextModel, CLIPTextModelWithProjection))
    ]
    diffusers.StableDiffusionXLPipeline(
        vae, *encoders, tokenizer, tokenizer, unet, diffusers.DDIMScheduler(), add_watermarker=False
    ).save_pretrained(folder)
    return folder
