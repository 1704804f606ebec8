"""Small ones of timm's image towers, each made by timm's own code of a released architecture."""

from __future__ import annotations

from timm.models import eva, fastvit, naflexvit, register_model, vision_transformer_hybrid, vitamin

SMALL = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2}


@register_model
def uwm_eva02(pretrained=False, **options):
    """EVA02-B-16: queries, keys and values apart, rotary positions, a gated MLP with a LayerNorm inside."""
    return eva.eva02_base_patch16_clip_224(**SMALL, ref_feat_shape=(4, 4), **options)


@register_model
def uwm_eva02_post(pretrained=False, **options):
    """EVA02-E-14: fused queries, keys and values with biases of their own, LayerNorms after."""
    return eva.eva02_enormous_patch14_clip_224(**SMALL, patch_size=16, **options)


@register_model
def uwm_vitamin(pretrained=False, **options):
    """ViTamin-S: a ViT of gated MLPs after a convolutional stem."""
    conv = vitamin.VitConvCfg(norm_layer="layernorm2d", norm_eps=1e-6)
    stem = vitamin.VitCfg(embed_dim=(8, 16, 32), depths=(1, 1, 1), stem_width=8, conv_cfg=conv, head_type="1d")
    return vitamin.vitamin_small_224(**SMALL, embed_cfg=stem, **options)


@register_model
def uwm_mobileclip_b(pretrained=False, **options):
    """MobileCLIP-B: a ViT after a convolutional stem."""
    stem = vision_transformer_hybrid.ConvStem(
        channels=(8, 8, 32), stride=(4, 2, 2), kernel_size=(4, 2, 2), padding=0, in_chans=3
    )
    return vision_transformer_hybrid._create_vision_transformer_hybrid(
        "vit_base_mci_224", backbone=stem, embed_args={"proj": False}, no_embed_class=True, **SMALL, **options
    )


@register_model
def uwm_mobileclip_s(pretrained=False, **options):
    """MobileCLIP-S0: FastViT, of convolutions."""
    return fastvit.fastvit_mci0(layers=(1, 1, 1, 1), embed_dims=(16, 16, 32, 32), **options)


@register_model
def uwm_naflex(pretrained=False, **options):
    """NaFlexViT as SigLIP 2 has it, given whole images of one size."""
    small = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    return naflexvit.naflexvit_base_patch16_siglip(**small, **options)
