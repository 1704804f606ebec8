"""Tiny random real models of every family, saved by their own libraries, and loaded by them again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import open_clip
import tiny_timm  # noqa: F401  registers with timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

WIDTH = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
VISION = WIDTH | {"image_size": 64, "patch_size": 16}
WORDS = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", *"a picture of dog cat tree car cup knife bomb skull and number".split()]


@dataclass(frozen=True)
class Family:
    """How a family's folder is made, and how its own library computes with a folder.

    `embed(folder, inputs)` gives modality -> embeddings, from the library alone; inputs are what `uwm` preprocessed.
    """

    make: Callable[[Path], None]
    embed: Callable[[Path, dict], dict[str, torch.Tensor]]
    layout: str


def shaken(module, seed=0):
    """Random weights that are large enough to matter."""
    torch.manual_seed(seed)
    for parameter in module.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.2)
        elif parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return module.eval()


def words_tokenizer(folder: Path, length: int, pad="[PAD]"):
    """A tokenizer of whole words; every caption begins and ends with a token of its own."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [("[BOS]", 2), ("[EOS]", 3)]
    tokenizer.post_processor = TemplateProcessing(single="[BOS] $A [EOS]", special_tokens=ends)
    names = {"pad_token": pad, "unk_token": "[UNK]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=length, **names)
    fast.save_pretrained(folder)


def processor(folder: Path, kind=transformers.CLIPImageProcessor, **options):
    square = {"height": 64, "width": 64}
    kind(**({"size": square, "crop_size": square} | options)).save_pretrained(folder)


TEXT = WIDTH | {"vocab_size": len(WORDS), "max_position_embeddings": 24, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}  # fmt: skip  # noqa: E501


def saved(module, folder: Path):
    shaken(module).save_pretrained(folder)


def make_clip(folder):
    saved(
        transformers.CLIPModel(transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=24)),
        folder,
    )
    words_tokenizer(folder, 24)
    processor(folder)


def make_text(kind):
    def make(folder):
        saved(getattr(transformers, kind)(transformers.CLIPTextConfig(**TEXT, projection_dim=24)), folder)
        words_tokenizer(folder, 24)

    return make


def make_vision(kind):
    def make(folder):
        saved(getattr(transformers, kind)(transformers.CLIPVisionConfig(**VISION, projection_dim=24)), folder)
        processor(folder)

    return make


def make_siglip(folder):
    config = transformers.SiglipConfig(text_config=TEXT, vision_config=VISION)
    saved(transformers.SiglipModel(config), folder)
    words_tokenizer(folder, 24)
    processor(folder, transformers.SiglipImageProcessor)


def make_siglip2(folder):
    vision = WIDTH | {"patch_size": 16, "num_patches": 16}
    saved(transformers.Siglip2Model(transformers.Siglip2Config(text_config=TEXT, vision_config=vision)), folder)
    words_tokenizer(folder, 24)
    transformers.Siglip2ImageProcessor(patch_size=16, max_num_patches=12).save_pretrained(folder)


def make_chinese(folder):
    config = transformers.ChineseCLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=24)
    saved(transformers.ChineseCLIPModel(config), folder)
    words_tokenizer(folder, 24)
    processor(folder, transformers.ChineseCLIPImageProcessor)


def make_llava(folder):
    language = transformers.LlamaConfig(**WIDTH, vocab_size=100)
    vision = transformers.CLIPVisionConfig(**VISION)
    saved(
        transformers.LlavaForConditionalGeneration(
            transformers.LlavaConfig(vision_config=vision, text_config=language)
        ),
        folder,
    )
    processor(folder)


def respelt(make, rename):
    """The same folder with its keys under other names, as older or other programs wrote them."""

    def other(folder):
        make(folder)
        state = load_file(folder / "model.safetensors")
        save_file({rename(k): v for k, v in state.items()}, folder / "model.safetensors", metadata={"format": "pt"})

    return other


def as_transformers_4(key):
    return key if ".vision_model." in key else key.replace("vision_tower.", "vision_tower.vision_model.", 1)


XL = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}


def make_pipeline(encoders):
    """A diffusers folder: its text encoders, tokenizer, and a big part that nobody loads."""

    def make(folder):
        (folder / "unet").mkdir(parents=True)
        for number, name in enumerate(encoders):
            module = getattr(transformers, encoders[name])(transformers.CLIPTextConfig(**TEXT, projection_dim=24))
            shaken(module, seed=number).save_pretrained(folder / name)
        words_tokenizer(folder / "tokenizer", 24)
        save_file({"conv_in.weight": torch.randn(8, 4)}, folder / "unet" / "diffusion_pytorch_model.safetensors")
        name = "StableDiffusionXLPipeline" if len(encoders) > 1 else "StableDiffusionPipeline"
        (folder / "model_index.json").write_text(json.dumps({"_class_name": name}))

    return make


def make_sharded_pipeline(folder):
    """Stable Diffusion XL, its second text encoder in shards of a few tensors each, as a big one is released."""
    make_pipeline(XL)(folder)
    big = transformers.CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2")
    (folder / "text_encoder_2" / "model.safetensors").unlink()
    big.save_pretrained(folder / "text_encoder_2", max_shard_size="20KB")
    assert (folder / "text_encoder_2" / "model.safetensors.index.json").is_file()


def make_sentence_transformers(folder):
    make_clip(folder / "0_CLIPModel")
    (folder / "2_Dense").mkdir()
    save_file({"linear.weight": torch.randn(4, 4)}, folder / "2_Dense" / "model.safetensors")
    modules = [{"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}]
    (folder / "modules.json").write_text(json.dumps(modules))


def make_open_clip(arch_config, pad="[PAD]"):
    def make(folder):
        folder.mkdir(parents=True, exist_ok=True)
        text = arch_config["text_cfg"]
        config = arch_config | {"text_cfg": text | {"hf_tokenizer_name": "local", "tokenizer_kwargs": {"clean": "whitespace"}}}  # noqa: E501  # fmt: skip
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
        words_tokenizer(folder, text["context_length"], pad)
        module = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
        save_file({k: v.contiguous() for k, v in shaken(module).state_dict().items()}, folder / "open_clip_model.safetensors")  # noqa: E501  # fmt: skip

    return make


def make_open_clip_text(text_config, **text_cfg):
    """An open_clip folder whose text tower transformers makes; its config lies beside the folder."""

    def make(folder):
        beside = folder.parent / f"{folder.name}-text"
        text_config.save_pretrained(beside)
        text = {"hf_model_name": str(beside), "context_length": 24} | text_cfg
        make_open_clip(OC_CLIP | {"text_cfg": text}, pad=WORDS[text_config.pad_token_id])(folder)

    return make


OC_VISION = {"image_size": 64, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16, "mlp_ratio": 2}
OC_TEXT = {
    "context_length": 24, "vocab_size": len(WORDS), "width": 32, "heads": 2, "layers": 2, "mlp_ratio": 2,
    "pool_type": "eos", "eos_id": 3,
}  # fmt: skip
OC_CLIP = {"embed_dim": 24, "vision_cfg": OC_VISION, "text_cfg": OC_TEXT}
OC_COCA = {
    "custom_text": True,
    "embed_dim": 24,
    "vision_cfg": OC_VISION | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "text_cfg": OC_TEXT | {"embed_cls": True, "output_tokens": True},
    "multimodal_cfg": OC_TEXT | {"attn_pooler_heads": 2},
}  # fmt: skip
OC_SIGLIP = {
    "embed_dim": 64,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 160, "timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": OC_TEXT | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
}  # fmt: skip
OC_MT5 = transformers.MT5Config(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, vocab_size=len(WORDS))
OC_NLLB = transformers.M2M100Config(
    vocab_size=len(WORDS),
    d_model=32,
    encoder_layers=2,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=64,
    decoder_ffn_dim=64,
    max_position_embeddings=40,
)


def timm_clip(tower, pool, proj, size=64):
    """open_clip's config of a CLIP around an image tower of timm."""
    vision = {"timm_model_name": tower, "timm_model_pretrained": False, "timm_pool": pool, "timm_proj": proj}
    return OC_CLIP | {"custom_text": True, "vision_cfg": vision | {"image_size": size}}


# ---------------------------------------------------------------- what their own libraries compute


def _pooled(output, *names):
    return output if torch.is_tensor(output) else next(v for n in names if (v := getattr(output, n, None)) is not None)


def by_transformers(kind, *, sub="", masked=True, key=None, **spelling):
    """Embeddings by a class of transformers, loaded strictly from a folder."""

    def embed(folder, inputs):
        where = str(folder / sub)
        module, report = getattr(transformers, kind).from_pretrained(where, output_loading_info=True, **spelling)
        assert not report["missing_keys"], report
        assert not report["unexpected_keys"], report
        module = module.eval()
        result = {}
        text = {"input_ids": inputs.get("ids")} | ({"attention_mask": inputs.get("mask")} if masked else {})
        if hasattr(module, "get_text_features"):
            result["text"] = _pooled(module.get_text_features(**text), "pooler_output")
            result["vision"] = _pooled(module.get_image_features(**inputs["pixels"]), "pooler_output")
        elif "Text" in kind:
            result[key or "text"] = _pooled(module(**text), "text_embeds", "pooler_output")
        else:
            result["vision"] = _pooled(module(**inputs["pixels"]), "image_embeds", "pooler_output")
        return result

    return embed


def by_both_encoders(folder, inputs):
    first = by_transformers("CLIPTextModel", sub="text_encoder")
    second = by_transformers("CLIPTextModelWithProjection", sub="text_encoder_2", key="text_2")
    return first(folder, inputs) | second(folder, inputs)


def by_llava(folder, inputs):
    module = transformers.LlavaForConditionalGeneration.from_pretrained(str(folder)).eval()
    tower = getattr(module, "vision_tower", None) or module.model.vision_tower
    read = tower(**inputs["pixels"], output_hidden_states=True).hidden_states[module.config.vision_feature_layer]
    return {"vision": read[:, 1:].mean(1)}


def by_open_clip(folder, inputs):
    module = open_clip.create_model(f"local-dir:{folder}").eval()
    return {"text": module.encode_text(inputs["ids"]), "vision": module.encode_image(inputs["pixels"]["pixel_values"])}


FAMILIES = {
    "clip": Family(make_clip, by_transformers("CLIPModel"), "hf-clip"),
    "clip text": Family(make_text("CLIPTextModel"), by_transformers("CLIPTextModel"), "hf-clip (text)"),
    "clip text projected": Family(
        make_text("CLIPTextModelWithProjection"), by_transformers("CLIPTextModelWithProjection"), "hf-clip (text)"
    ),
    "clip vision": Family(make_vision("CLIPVisionModel"), by_transformers("CLIPVisionModel"), "hf-clip (vision)"),
    "clip vision projected": Family(
        make_vision("CLIPVisionModelWithProjection"),
        by_transformers("CLIPVisionModelWithProjection"), "hf-clip (vision)",
    ),
    "clip text, 4.x spelling": Family(
        respelt(make_text("CLIPTextModel"), lambda k: k if k.startswith("text_model.") else f"text_model.{k}"),
        by_transformers("CLIPTextModel"), "hf-clip (text)",
    ),
    "siglip": Family(make_siglip, by_transformers("SiglipModel", masked=False), "hf-siglip"),
    "siglip 2 naflex": Family(make_siglip2, by_transformers("Siglip2Model", masked=False), "hf-siglip"),
    "chinese-clip": Family(make_chinese, by_transformers("ChineseCLIPModel"), "hf-bert + hf-clip"),
    "llava": Family(make_llava, by_llava, "hf-clip (vision)"),
    "llava, 4.x spelling": Family(
        respelt(make_llava, as_transformers_4), by_llava,
        "hf-clip (vision)",
    ),
    "stable diffusion": Family(
        make_pipeline({"text_encoder": "CLIPTextModel"}), by_transformers("CLIPTextModel", sub="text_encoder"),
        "hf-clip (text)",
    ),
    "stable diffusion xl": Family(make_pipeline(XL), by_both_encoders, "hf-clip (text, text_2)"),
    "stable diffusion xl, shards": Family(make_sharded_pipeline, by_both_encoders, "hf-clip (text, text_2)"),
    "sentence-transformers": Family(
        make_sentence_transformers, by_transformers("CLIPModel", sub="0_CLIPModel"), "hf-clip"
    ),
    "open_clip": Family(make_open_clip(OC_CLIP), by_open_clip, "open_clip"),
    "open_clip custom text": Family(make_open_clip(OC_CLIP | {"custom_text": True}), by_open_clip, "open_clip"),
    "coca": Family(make_open_clip(OC_COCA), by_open_clip, "open_clip"),
    "open_clip mt5": Family(make_open_clip_text(OC_MT5, hf_proj_type="linear"), by_open_clip, "mt5 + open_clip"),
    "open_clip nllb": Family(
        make_open_clip_text(OC_NLLB, hf_proj_type="linear", hf_pooler_type="cls_pooler"), by_open_clip,
        "m2m-100 + open_clip",
    ),
    "open_clip siglip (timm)": Family(make_open_clip(OC_SIGLIP), by_open_clip, "open_clip + timm"),
}  # fmt: skip


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target
