"""The vision tower inside a bigger model that reads images, such as LLaVA, opened without the rest of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..checkpoint import Checkpoint, read_json
from ..errors import BadInput
from ..layouts import Tower
from ..weights import block_count
from .base import Reach
from .filling import fill
from .hugging_face import HuggingFaceModel, _config, _module, unsupported
from .references import resolve


@dataclass(frozen=True)
class Reader:
    """How a kind of bigger model reads its vision tower.

    Attributes:
        layers: The key of its config with the hidden states that it reads, one or several, as transformers counts them;
            None where it reads the tower's last output.
        tokens: The key that says which tokens it reads; None where it reads all of them.
        dropping: What that key says, or is taken to say where it is missing, where the first is left out: a CLIP's
            class token.
    """

    layers: str | None = None
    tokens: str | None = None
    dropping: str = "default"


LLAVA = Reader("vision_feature_layer", "vision_feature_select_strategy")
READERS = {  # model type -> how it reads its tower
    "llava": LLAVA, "llava_next": LLAVA, "llava_onevision": LLAVA, "aya_vision": LLAVA,
    "vipllava": LLAVA, "paligemma": Reader(), "gemma3": Reader(),
}  # fmt: skip
# LLaVA's own releases, of several types, name the CLIP that their tower came from.
ORIGINAL = Reader("mm_vision_select_layer", "mm_vision_select_feature", "patch")


class InsideModel(HuggingFaceModel):
    """A vision tower, by what the model around it reads: an image's embedding is the mean over the tokens read.

    Args:
        module: The tower.
        checkpoint: Of the bigger model.
        processor: The folder of its image processor.
        layers: The hidden states that are read, side by side; none for the last output.
        skipped: How many of the first tokens are not read.
        who: The bigger model in words.
    """

    def __init__(
        self, module: Any, checkpoint: Checkpoint, *, processor: Path, layers: tuple[int, ...], skipped: int, who: str
    ) -> None:
        super().__init__(module, checkpoint, processor=processor)
        self._layers, self._skipped = layers, skipped
        count = block_count(self.weights, "vision")
        if odd := [layer for layer in layers if not -count - 1 <= layer <= count]:
            raise BadInput(f"{checkpoint.path}: {who} reads layer {odd[0]} of a vision tower of {count} blocks")
        blocks = max((layer % (count + 1) for layer in layers), default=count)
        named = f"layer {layers[0]}" if len(layers) == 1 else f"layers {', '.join(map(str, layers))}"
        self.restrict("vision", Reach(blocks, f"{who} reads {named} of its vision tower"))

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        module: Any = self.module
        found = module(pixel_values=pixel_values, output_hidden_states=bool(self._layers))
        states = [found.hidden_states[layer] for layer in self._layers] or [found.last_hidden_state]
        return torch.cat([state[:, self._skipped :].mean(1) for state in states], -1)

    def preprocess(self, images: list[Image.Image]) -> torch.Tensor:
        """Where an image is looked at in tiles, the first of them, which is the whole image."""
        pixels = self._process(images)["pixel_values"]
        return torch.stack([each[0] if each.ndim == 4 else each for each in pixels])

    def pools(self, tower: str) -> str:
        return "all"

    def last_mlp(self, tower: str) -> None:
        """None: the model around reads more than one token."""


def open_inside(checkpoint: Checkpoint, folder: Path, config: dict[str, Any]) -> InsideModel:
    """The vision tower inside a bigger model, without loading the rest of it.

    Raises:
        BadInput: The model is of a type that uwm does not support.
    """
    kind, towers = config.get("model_type"), checkpoint.layout.towers
    if [tower.name for tower in towers] == ["vision"] and "mm_vision_tower" in config:
        return _filled(checkpoint, towers[0], *_original(folder, config), ORIGINAL, config)
    if [tower.name for tower in towers] != ["vision"] or kind not in READERS:
        raise unsupported(checkpoint, folder, kind)
    outer = _config(folder, kind)
    return _filled(checkpoint, towers[0], outer.vision_config, folder, READERS[kind], vars(outer))


def _original(folder: Path, config: Mapping[str, Any]) -> tuple[Any, Path]:
    """Config and folder of the CLIP that the tower of one of LLaVA's own releases came from."""
    source = resolve(config["mm_vision_tower"], offline=True)
    kind = read_json(source / "config.json").get("model_type")
    if kind != "clip":
        raise BadInput(
            f"{folder}: its vision tower came from {config['mm_vision_tower']}, of model type {kind!r}; of LLaVA's own "
            "releases uwm reads those made from a CLIP, and any in transformers' format, such as llava-hf's on the Hub"
        )
    return _config(source, kind).vision_config, source


def _filled(
    checkpoint: Checkpoint, tower: Tower, inner: Any, processor: Path, reader: Reader, outer: Mapping[str, Any]
) -> InsideModel:
    """The tower with its weights, and by the config around it what is read of it."""
    module = _module(inner, checkpoint, tower.prefix, False)
    fill(module, checkpoint, scope=tower.prefix, tower=tower)
    named = outer.get(reader.layers) if reader.layers else None
    layers = () if named is None else (named,) if isinstance(named, int) else tuple(named)
    skipped = int(reader.tokens is not None and outer.get(reader.tokens, reader.dropping) == reader.dropping)
    who = f"the model around it ({outer.get('model_type')})"
    return InsideModel(module, checkpoint, processor=processor, layers=layers, skipped=skipped, who=who)
