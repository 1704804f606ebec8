"""Bare weights in Hugging Face's layout: a CLIP without a folder; sizes and open_clip's registry give its config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import Checkpoint
from ..errors import BadInput
from .base import Model
from .filling import fill
from .hugging_face import HIGHEST_ID, HuggingFaceModel
from .openai_tokenizer import write_openai_tokenizer
from .preprocessing import clip_processor
from .sizes import OPENAI_VOCABULARY, beyond_plain, describe
from .tokenizing import open_clip_lengths


def open_bare(checkpoint: Checkpoint, arch: str | None, quick_gelu: bool | None, preprocess: str | None) -> Model:
    """A CLIP from bare weights: sizes from the tensors, heads from open_clip's architecture of these sizes."""
    import transformers

    bare = describe(checkpoint, arch, quick_gelu, preprocess)
    if odd := beyond_plain(bare.config):
        raise BadInput(
            f"{checkpoint.path}: --arch {bare.arch} is no plain CLIP ({', '.join(odd)}), so its weights cannot be in "
            "Hugging Face's layout; name the architecture of these weights"
        )
    if len(checkpoint.layout.towers) != 2:
        raise BadInput(f"{checkpoint.path}: bare weights of a single tower need their folder with config.json")
    module = transformers.CLIPModel(clip_config(bare.config))
    fill(module, checkpoint)
    model = BareModel(module, checkpoint, bare.preprocess)
    model.notes += bare.notes
    return model


def clip_config(config: dict[str, Any]) -> Any:
    """transformers' CLIPConfig of the same plain CLIP as an open_clip config, defaults filled in as open_clip does."""
    from transformers import CLIPConfig

    text, vision = config["text_cfg"], config["vision_cfg"]
    act = {"hidden_act": "quick_gelu" if config["quick_gelu"] else "gelu"}
    text_width, width, side = text.get("width", 512), vision.get("width", 768), vision.get("image_size", 224)
    vocabulary = text.get("vocab_size", OPENAI_VOCABULARY)
    text_config = act | {
        "hidden_size": text_width,
        "intermediate_size": int(text_width * text.get("mlp_ratio", 4.0)),
        "num_hidden_layers": text.get("layers", 12),
        "num_attention_heads": text.get("heads", 8),
        "max_position_embeddings": text.get("context_length", 77),
        "vocab_size": vocabulary,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": _end_token(text, vocabulary),
        "layer_norm_eps": text.get("norm_kwargs", {}).get("eps", 1e-5),
    }
    vision_config = act | {
        "hidden_size": width,
        "intermediate_size": int(width * vision.get("mlp_ratio", 4.0)),
        "num_hidden_layers": vision.get("layers", 12),
        "num_attention_heads": width // vision.get("head_width", 64),
        "image_size": side if isinstance(side, int) else side[0],
        "patch_size": vision.get("patch_size", 16),
        "layer_norm_eps": vision.get("norm_kwargs", {}).get("eps", 1e-5),
    }
    return CLIPConfig(text_config=text_config, vision_config=vision_config, projection_dim=config["embed_dim"])


def _end_token(text: dict[str, Any], vocabulary: int) -> int:
    """The eos_token_id by which transformers pools the token that open_clip does: of OpenAI's vocabulary the last."""
    if text.get("pool_type", "argmax") == "eos":
        return int(text["eos_id"])
    return vocabulary - 1 if vocabulary == OPENAI_VOCABULARY else HIGHEST_ID


class BareModel(HuggingFaceModel):
    """A CLIP that came without a folder: OpenAI's tokenizer, and a preprocessing in open_clip's words."""

    def __init__(self, module: Any, checkpoint: Checkpoint, preprocess: Mapping[str, Any]) -> None:
        super().__init__(module, checkpoint)
        side = self.config.vision_config.image_size
        self._processor = clip_processor(preprocess, (side, side))

    def tokenize(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        ids = self.tokenizer()(texts)
        return ids, (torch.arange(ids.shape[1]) <= ids.argmax(-1, keepdim=True)).long()

    def caption_lengths(self, texts: list[str]) -> list[int]:
        return open_clip_lengths(self.tokenizer(), texts)

    def tokenizer(self) -> Any:
        import open_clip

        if self._tokenizer is None:
            if self._text_config.vocab_size != OPENAI_VOCABULARY:
                raise BadInput(
                    "these bare weights have a vocabulary of their own; pass the folder with their tokenizer"
                )
            self._tokenizer = open_clip.SimpleTokenizer(context_length=self.context_length)
        return self._tokenizer

    def side_configs(self) -> dict[str, Any]:
        import json

        return {
            "config.json": json.loads(self.config.to_json_string()) | {"architectures": ["CLIPModel"]},
            "preprocessor_config.json": json.loads(self.processor().to_json_string()),
        }

    def write_side_files(self, folder: Path) -> None:
        super().write_side_files(folder)
        if self._text_config.vocab_size == OPENAI_VOCABULARY:
            write_openai_tokenizer(folder, self._text_config.max_position_embeddings)
