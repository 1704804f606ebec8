"""How far the model around a tower reads it: LLaVA's second-last layer, say. What lies behind changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import BadInput
from ..weights import WeightId, block_count
from .json_files import stated
from .reader import Checkpoint

Layers = tuple[int, ...]  # numbers of hidden states, as transformers counts them; none for the tower's last output


@dataclass(frozen=True)
class Reader:
    """How a kind of bigger model reads its vision tower.

    Attributes:
        default: The layers that it reads where its config does not say.
        layers: The keys of its config that say it, with spaces between; the first that is there counts.
        tokens: The key that says which tokens it reads; None where it reads all of them.
        dropping: What that key says where the first token is left out: a CLIP's class token.
        drops: Whether it is left out where the config does not say.
    """

    default: Layers = ()
    layers: str = ""
    tokens: str | None = None
    dropping: str = "default"
    drops: bool = True

    def read_layers(self, config: Mapping[str, Any]) -> Layers:
        """The layers that a config of this kind asks for. Raises BadInput for what are none."""
        for key in (key for key in self.layers.split() if config.get(key) is not None):
            layers = config[key] if isinstance(config[key], list) else [config[key]]
            if not layers or any(type(layer) is not int for layer in layers):
                raise BadInput(f"config.json: {key} {config[key]!r}: expected the number of a layer, or several")
            return tuple(layers)
        return self.default

    def skipped(self, config: Mapping[str, Any]) -> int:
        """How many of the first tokens are not read."""
        said = self.tokens and config.get(self.tokens)
        return int(self.tokens is not None and (said == self.dropping if said else self.drops))


def _llava(*default: int, drops: bool = True) -> Reader:
    keys = "vision_feature_layer vision_feature_layers"
    return Reader(default, keys, "vision_feature_select_strategy", "default", drops)


READERS = {  # model type -> how it reads its tower, with transformers' defaults
    "llava": _llava(-2), "llava_next": _llava(-2), "vipllava": _llava(-2, -5, -8, -11, 6),
    "llava_onevision": _llava(-1, drops=False), "aya_vision": _llava(-1, drops=False),
    "paligemma": Reader(), "gemma3": Reader(),
}  # fmt: skip
# LLaVA's own releases, of several types, name the CLIP that their tower came from.
MADE_FROM = "mm_vision_tower"
ORIGINAL = Reader((), "mm_vision_select_layer", "mm_vision_select_feature", "patch")
_XL = ("", "Img2Img", "Inpaint", "InstructPix2Pix", "ControlNet", "ControlNetImg2Img", "ControlNetInpaint", "Adapter",
       "ControlNetUnion", "ControlNetUnionImg2Img", "ControlNetUnionInpaint", "ControlNetXS", "PAG", "PAGImg2Img",
       "PAGInpaint", "ControlNetPAG", "ControlNetPAGImg2Img", "KDiffusion")  # fmt: skip
# diffusers' pipeline -> its text encoders of which only the second-last hidden state is read. Of Stable Diffusion XL's
# second encoder, and of both of Stable Diffusion 3, the pooled output is read too, and with it the last block.
SECOND_LAST = {f"StableDiffusionXL{kind}Pipeline": ("text_encoder",) for kind in _XL}

# Of Stability's own single files: what stands before a text encoder of which only that state is read -> whose it is.
SECOND_LAST_OF = {
    "conditioner.embedders.0.transformer.": "Stable Diffusion XL", "cond_stage_model.model.": "Stable Diffusion 2",
}  # fmt: skip


def reader_of(config: Mapping[str, Any]) -> Reader | None:
    """How the bigger model of a config reads its vision tower; None for a model that is none such."""
    return ORIGINAL if MADE_FROM in config else READERS.get(str(config.get("model_type")))


def unread(checkpoint: Checkpoint) -> dict[WeightId, str]:
    """The weights in blocks that the model around their tower never reads -> who reads what instead.

    Raises:
        BadInput: The config asks for a layer that the tower does not have.
    """
    found: dict[WeightId, str] = {}
    for tower, (layers, why) in _read(checkpoint).items():
        count = block_count(checkpoint.weights, tower)
        if odd := [layer for layer in layers if not -count - 1 <= layer <= count]:
            raise BadInput(f"{checkpoint.path}: {why}, but there is no layer {odd[0]}, for it has {count} blocks")
        blocks = max((layer % (count + 1) for layer in layers), default=count)
        found |= {w: why for w in checkpoint.weights if w.tower == tower and (w.block or 0) >= blocks}
    return found


def unread_for(purpose: str | None, checkpoint: Checkpoint) -> dict[WeightId, str]:
    """The weights that whatever a model is edited for will not read, where nothing around it says that already.

    Args:
        purpose: ``llava``: a LLaVA that is made of the model, with transformers' defaults; any other reads all.
        checkpoint: The model's.
    """
    if purpose != "llava" or "vision" in _read(checkpoint):
        return {}
    (layer,) = READERS[purpose].default
    read = block_count(checkpoint.weights, "vision") + 1 + layer  # blocks
    why = f"LLaVA reads layer {layer} of its vision tower"
    return {w: why for w in checkpoint.weights if w.tower == "vision" and (w.block or 0) >= read}


def idle(unread: Mapping[WeightId, str], weights: Iterable[WeightId]) -> list[str]:
    """A line for each of some weights whose edit does nothing."""
    blocks = {(weight.tower, weight.block): why for weight, why in unread.items()}
    return [
        f"{name}: {blocks[name.tower, name.block]}; this block is never read, its edit does nothing"
        for name in sorted(weights)
        if (name.tower, name.block) in blocks
    ]


def _read(checkpoint: Checkpoint) -> dict[str, tuple[Layers, str]]:
    """Tower -> the layers of it that are read, and that in words; of towers inside something."""
    index, towers = checkpoint.path / "model_index.json", checkpoint.layout.towers
    if index.is_file():
        pipeline = str(stated(index).get("_class_name"))
        folders = {tower.name: tower.prefix.partition("/")[0] for tower in towers}
        found = {name: folder for name, folder in folders.items() if folder in SECOND_LAST.get(pipeline, ())}
        return {name: ((-2,), f"{pipeline} reads layer -2 of {folder}") for name, folder in found.items()}
    if not checkpoint.path.is_dir():
        owners = {t.name: who for t in towers for prefix, who in SECOND_LAST_OF.items() if t.prefix.startswith(prefix)}
        return {name: ((-2,), f"{who} reads layer -2 of this encoder") for name, who in owners.items()}
    folder = checkpoint.folder_of(towers[0].name)
    config = {} if folder is None else stated(folder / "config.json")
    reader = reader_of(config)
    if reader is None or [tower.name for tower in towers] != ["vision"]:
        return {}
    if reader is ORIGINAL and towers[0].encoder.family != "hf-clip":
        return {}  # LLaVA's own code counts the layers of others in its own way
    layers = reader.read_layers(config)
    named = f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"
    return {"vision": (layers, f"the model around it ({config.get('model_type')}) reads {named} of its vision tower")}
