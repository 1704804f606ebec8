"""The vision tower inside a bigger model that reads images, such as LLaVA, opened without the rest of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import Checkpoint
from ..checkpoint.reach import MADE_FROM, Reader, reader_of
from ..errors import BadInput
from .described import read_config
from .filling import fill
from .hugging_face import HuggingFaceModel, _config, _module, unsupported
from .preprocessors import FirstTile
from .references import resolve


class InsideModel(HuggingFaceModel):
    """A vision tower, by what the model around it reads: an image's embedding is the mean over the tokens read.

    Args:
        module: The tower.
        checkpoint: Of the bigger model.
        processor: The folder of its image processor.
        reader: How the bigger model reads it.
        config: The bigger model's.
    """

    _preprocessor = FirstTile

    def __init__(
        self, module: Any, checkpoint: Checkpoint, processor: Path, reader: Reader, config: Mapping[str, Any]
    ) -> None:
        super().__init__(module, checkpoint, processor=processor)
        self._layers, self._skipped = reader.read_layers(config), reader.skipped(config)

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        module: Any = self.module
        found = module(pixel_values=pixel_values, output_hidden_states=bool(self._layers))
        states = [found.hidden_states[layer] for layer in self._layers] or [found.last_hidden_state]
        return torch.cat([state[:, self._skipped :].mean(1) for state in states], -1)

    def pools(self, tower: str) -> str:
        return "all"

    def before_patches(self, tower: str) -> int:
        return self._skipped

    def last_mlp(self, tower: str) -> None:
        """None: the model around reads more than one token."""


def open_inside(checkpoint: Checkpoint, folder: Path, config: dict[str, Any]) -> InsideModel:
    """The vision tower inside a bigger model, without loading the rest of it.

    Raises:
        BadInput: The model is of a type that uwm does not support.
    """
    kind, towers, reader = config.get("model_type"), checkpoint.layout.towers, reader_of(config)
    if reader is None or [tower.name for tower in towers] != ["vision"]:
        raise unsupported(checkpoint, folder, kind)
    inner, processor = (
        _original(folder, config) if MADE_FROM in config else (_config(folder, kind, inner=True).vision_config, folder)
    )
    module = _module(inner, checkpoint, folder, False, scope=towers[0].prefix, tower=towers[0])
    fill(module, checkpoint, scope=towers[0].prefix, tower=towers[0])
    return InsideModel(module, checkpoint, processor, reader, config)


def _original(folder: Path, config: Mapping[str, Any]) -> tuple[Any, Path]:
    """Config and folder of the CLIP that the tower of one of LLaVA's own releases came from."""
    source = resolve(config[MADE_FROM], offline=True)
    kind = read_config(source).get("model_type")
    if kind != "clip":
        raise BadInput(
            f"{folder}: its vision tower came from {config[MADE_FROM]}, of model type {kind!r}; of LLaVA's own "
            "releases uwm reads those made from a CLIP, and any in transformers' format, such as llava-hf's on the Hub"
        )
    return _config(source, kind).vision_config, source
