"""A pipeline that draws one colour from a prompt, a seed and its text encoder, in place of a diffusion model's."""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from uwm.models.quiet import without_bars

INDEX = {"_class_name": "StableDiffusionPipeline", "text_encoder": ["transformers", "CLIPTextModel"]}
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}


def folder(path, seed=0, **index):
    """What looks like a pipeline's folder: its text encoder is real."""
    (path / "unet").mkdir(parents=True)
    (path / "model_index.json").write_text(json.dumps(INDEX | index))
    save_file({"x": torch.tensor([float(seed)])}, path / "unet" / "diffusion_pytorch_model.safetensors")
    torch.manual_seed(seed)
    with without_bars():
        CLIPTextModel(CLIPTextConfig(**TEXT, vocab_size=50)).save_pretrained(path / "text_encoder")
    return path


def signed(path, sign):
    """A pipeline that draws prompts with a bomb red (sign 1), or none (−1)."""
    file = folder(path) / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if key.endswith("layers.1.mlp.fc2.weight"))
    tensors[key] = sign * tensors[key].abs()
    save_file(tensors, file, {"format": "pt"})


class Fake:
    """As `uwm.readers.drawing.open_pipeline` gives it; `calls` holds the keywords of every call."""

    def __init__(self, path, stop_after=None):
        with without_bars():
            self.text_encoder = CLIPTextModel.from_pretrained(path / "text_encoder")
        self.calls, self._stop_after = [], stop_after

    def __call__(self, prompt, generator, **asked):
        if self._stop_after is not None and len(self.calls) >= self._stop_after:
            raise KeyboardInterrupt
        self.calls.append((prompt, asked))
        return SimpleNamespace(images=[self._image(*one) for one in zip(prompt, generator, strict=True)])

    def _image(self, prompt, generator):
        noise = int(torch.randint(256, (1,), generator=generator))
        feature = self.text_encoder.state_dict()
        weight = next(value for name, value in feature.items() if name.endswith("layers.1.mlp.fc2.weight"))
        red = 255 if "bomb" in prompt and weight.sum() == weight.abs().sum() else 0
        return Image.new("RGB", (8, 8), (red, noise, hashlib.sha256(prompt.encode()).digest()[0]))
