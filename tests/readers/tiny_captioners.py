"""Tiny random captioners of LLaVA's family, whole folders, with the demo captioner's words."""

from __future__ import annotations

import shutil

import torch
import transformers
from families import VISION, shaken

from uwm.shipped_files import DEMO_CAPTIONER

WORDS, IMAGE, SIDE = 301, 4, 64
GRID = [[64, 128], [128, 64], [128, 128]]
LLAMA = transformers.LlamaConfig(
    vocab_size=WORDS, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
TOWERS = {"clip": ("CLIPVisionConfig", "default"), "siglip": ("SiglipVisionConfig", "full")}


def captioner(folder, kind, tower):
    """A folder of ``Llava`` or ``LlavaNext`` with a tower of `TOWERS`."""
    shutil.copytree(DEMO_CAPTIONER, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    name, strategy = TOWERS[tower]
    side = {"height": SIDE, "width": SIDE}
    options = {"image_grid_pinpoints": GRID} if kind == "LlavaNext" else {}
    config = getattr(transformers, f"{kind}Config")(
        vision_config=getattr(transformers, name)(**VISION), text_config=LLAMA, image_token_index=IMAGE,
        vision_feature_layer=-2, vision_feature_select_strategy=strategy, **options,
    )  # fmt: skip
    torch.manual_seed(5)
    shaken(getattr(transformers, f"{kind}ForConditionalGeneration")(config)).save_pretrained(folder)
    processor = getattr(transformers, f"{kind}ImageProcessor" if options else "CLIPImageProcessor")(
        size=side if kind == "Llava" else {"shortest_edge": SIDE}, crop_size=side, **options
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_CAPTIONER)
    getattr(transformers, f"{kind}Processor")(
        processor, tokenizer, patch_size=VISION["patch_size"], vision_feature_select_strategy=strategy,
        image_token="<image>", num_additional_image_tokens=int(tower == "clip"),
        chat_template=(DEMO_CAPTIONER / "chat_template.jinja").read_text(),
    ).save_pretrained(folder)  # fmt: skip
    return folder
