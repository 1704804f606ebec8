"""transformers' models: CLIP and its relatives, single encoders, a LLaVA's vision tower, diffusers pipelines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from ..checkpoint import Checkpoint, read_json
from ..checkpoint.reach import READERS
from ..errors import BadInput
from .base import Model
from .filling import fill
from .openai_tokenizer import write_openai_tokenizer
from .preprocessing import clip_processor
from .sizes import OPENAI_VOCABULARY, beyond_plain, describe
from .tokenizing import FolderTokenizer, folder_filler, open_clip_lengths

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
WHOLE = ("clip", "siglip", "siglip2", "chinese_clip", "metaclip_2", "vision-text-dual-encoder")  # with both towers
SINGLE = {  # model type -> its class, and its class where a projection is stored
    "clip_text_model": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "clip_vision_model": ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
    "siglip_text_model": ("SiglipTextModel", "SiglipTextModel"),
    "siglip_vision_model": ("SiglipVisionModel", "SiglipVisionModel"),
}
HIGHEST_ID = 2  # the eos_token_id of the first CLIP configs, which transformers takes for "the token of the highest id"
PROJECTIONS = ("text_projection.weight", "visual_projection.weight")


class HuggingFaceModel(Model):
    """A model of transformers; its folder may lack tokenizer and preprocessor until they are asked for."""

    def __init__(
        self,
        module: Any,
        checkpoint: Checkpoint | None,
        *,
        tokenizer: Path | None = None,
        processor: Path | None = None,
    ) -> None:
        self.config: Any = module.config
        super().__init__(module, checkpoint, "quick_gelu" in _activations(self.config))
        folder = checkpoint.path if checkpoint is not None and checkpoint.path.is_dir() else None
        self._folders = {"tokenizer": tokenizer or folder, "image preprocessor": processor or folder}
        self._tokenizer: Any = None
        self._processor: Any = None

    @property
    def _text_config(self) -> Any:
        return getattr(self.config, "text_config", self.config)

    @property
    def _attends_forwards(self) -> bool:
        """Whether padding takes part: SigLIP was trained on padded captions without a mask, and pools the last one."""
        return str(self._text_config.model_type).startswith("siglip")

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        self._demand("vision")
        module: Any = self.module
        if hasattr(module, "get_image_features"):
            return _features(module.get_image_features(pixel_values=pixel_values))
        return _features(module(pixel_values=pixel_values))

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, tower: str = "text") -> torch.Tensor:
        self._demand("text")
        module: Any = self.module
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self._attends_forwards:
            missing = self._text_config.max_position_embeddings - input_ids.shape[1]
            pad = self._text_config.pad_token_id or 0
            inputs = {"input_ids": nn.functional.pad(input_ids, (0, missing), value=pad)}
        return _features(
            module.get_text_features(**inputs) if hasattr(module, "get_text_features") else module(**inputs)
        )

    def _demand(self, modality: str) -> None:
        if modality not in self.modalities:
            raise BadInput(f"this model ({self.layout.name}) has no {modality} tower")

    def tokenize(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.tokenizer()(texts)

    @property
    def context_length(self) -> int:
        return int(self._text_config.max_position_embeddings)

    def caption_lengths(self, texts: list[str]) -> list[int]:
        return self.tokenizer().lengths(texts)

    def tokenizer(self) -> Any:
        """The folder's tokenizer. Raises BadInput where there is none."""
        self._demand("text")
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            loaded = self._side(AutoTokenizer.from_pretrained, "tokenizer", TOKENIZER_FILES)
            self._tokenizer = FolderTokenizer(loaded, self.context_length, self._attends_forwards)
            self.notes += self._tokenizer.notes
        return self._tokenizer

    def text_mask(self, attention_mask: torch.Tensor, length: int) -> torch.Tensor:
        mask = super().text_mask(attention_mask, length)
        return torch.ones_like(mask) if self._attends_forwards else mask

    def pooling_setting(self, tower: str) -> str:
        end = self._tower_config(tower).eos_token_id
        rule = " (to transformers: the token of the highest id)" if end == HIGHEST_ID else ""
        return f"config.json says eos_token_id {end}{rule}"

    def _tower_config(self, tower: str) -> Any:
        return self._text_config

    def preprocess(self, images: list[Image.Image]) -> torch.Tensor:
        return self._fitting(self._process(images)["pixel_values"])

    def _fitting(self, pixels: torch.Tensor) -> torch.Tensor:
        """The same images, shown to be of the model's size. Raises BadInput."""
        config, size = self._vision_config, self._vision_config.image_size
        self._demand_shape(pixels, (config.num_channels, *((size, size) if isinstance(size, int) else size)))
        return pixels

    @property
    def _vision_config(self) -> Any:
        return getattr(self.config, "vision_config", self.config)

    def _demand_shape(self, pixels: torch.Tensor, taken: tuple[int, ...]) -> None:
        """Refuse a preprocessor of another model. Raises BadInput."""
        given = tuple(pixels.shape[-len(taken) :])
        if given != taken or pixels.ndim != 1 + max(2, len(taken)):
            raise BadInput(
                f"{self._folders['image preprocessor']}: the image preprocessor makes {list(pixels.shape[1:])} of an "
                f"image, the vision tower takes {list(taken)} (config.json); copy the original's preprocessor there"
            )

    def processor(self) -> Any:
        """transformers' image processor of the folder. Raises BadInput where there is none."""
        if self._processor is None:
            from transformers import AutoImageProcessor

            self._processor = self._side(AutoImageProcessor.from_pretrained, "image preprocessor", PROCESSOR_FILES)
        return self._processor

    def _process(self, images: list[Image.Image]) -> Any:
        self._demand("vision")
        try:
            return self.processor()(images, return_tensors="pt")
        except ValueError as error:
            where, reason = self._folders["image preprocessor"], str(error).splitlines()[0]
            raise BadInput(f"{where}: the image preprocessor fails on these images ({reason})") from None

    def _side(self, loader: Callable[..., Any], what: str, files: tuple[str, ...]) -> Any:
        """Load a side file of the folder; transformers would make one up where there is none."""
        folder = self._folders[what]
        if folder is None:
            raise BadInput(f"this model has no folder to read its {what} from; pass preprocessed PairBatch tensors")
        if not any((folder / name).is_file() for name in files):
            raise BadInput(
                f"{folder}: no {what} in this folder (none of {', '.join(files)}); copy the original's there"
            )
        try:
            return loader(str(folder), local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, ImportError, TypeError, KeyError, AttributeError) as error:
            raise BadInput(f"{folder}: the {what} cannot be used ({str(error).splitlines()[0]})") from None


class NaFlexModel(HuggingFaceModel):
    """SigLIP 2 of any aspect ratio: pixel values [n, patches, 3·p·p + 3], the last columns mask, rows, columns."""

    def preprocess(self, images: list[Image.Image]) -> torch.Tensor:
        found = self._process(images)
        patches, mask = found["pixel_values"], found["pixel_attention_mask"][:, :, None]
        self._demand_shape(patches, (self._vision_config.num_channels * self._vision_config.patch_size**2,))
        sides = found["spatial_shapes"][:, None, :].expand(-1, patches.shape[1], -1)
        return torch.cat([patches, mask.to(patches.dtype), sides.to(patches.dtype)], -1)

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        module: Any = self.module
        return _features(
            module.get_image_features(
                pixel_values=pixel_values[:, :, :-3],
                pixel_attention_mask=pixel_values[:, :, -3].long(),
                spatial_shapes=pixel_values[:, 0, -2:].long(),
            )
        )

    def image_mask(self, pixel_values: torch.Tensor) -> torch.Tensor | None:
        return pixel_values[:, :, -3].long()


class PipelineModel(HuggingFaceModel):
    """The text encoders of a diffusers pipeline, side by side: towers ``text``, ``text_2``."""

    def __init__(self, encoders: dict[str, Any], checkpoint: Checkpoint) -> None:
        module: Any = nn.ModuleDict(encoders)
        module.config = next(iter(encoders.values())).config
        super().__init__(module, checkpoint, tokenizer=checkpoint.path / "tokenizer")
        self._encoders = dict(zip((t.name for t in self.layout.towers), encoders.values(), strict=True))

    @property
    def context_length(self) -> int:
        return min(encoder.config.max_position_embeddings for encoder in self._encoders.values())

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, tower: str = "text") -> torch.Tensor:
        return _features(self._encoders[tower](input_ids=input_ids, attention_mask=attention_mask))

    def _tower_config(self, tower: str) -> Any:
        return self._encoders[tower].config

    def filler(self, tower: str) -> int:
        assert self.checkpoint is not None
        folder = self.checkpoint.path / tower.replace("text", "tokenizer")
        return folder_filler(folder) if tower != "text" and folder.is_dir() else super().filler(tower)


def _features(output: Any) -> torch.Tensor:
    """Embeddings of whatever a version of transformers gives: a tensor, or an output with or without a projection."""
    if isinstance(output, torch.Tensor):
        return output
    for name in ("text_embeds", "image_embeds", "pooler_output"):
        if getattr(output, name, None) is not None:
            return getattr(output, name)
    raise BadInput(f"{type(output).__name__} holds no embedding")


def _activations(config: Any) -> set[str]:
    parts = [getattr(config, name, None) for name in ("text_config", "vision_config")]
    return {part.hidden_act for part in parts if part is not None} or {config.hidden_act}


def open_folder(checkpoint: Checkpoint) -> Model:
    """Build what the folder's config.json describes and fill it from the checkpoint. Raises BadInput."""
    from .inside import open_inside

    if (checkpoint.path / "model_index.json").is_file():
        return _open_pipeline(checkpoint)
    tower = checkpoint.layout.towers[0]
    folder = checkpoint.folder_of(tower.name)
    assert folder is not None
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind in WHOLE or kind in SINGLE:
        whole = kind in WHOLE and any(not _belongs(key, tower.prefix) for key in checkpoint.entries)
        module = _module(_config(folder, kind), checkpoint, "", whole)
        fill(module, checkpoint, tower=None if whole else tower)
        which = NaFlexModel if kind == "siglip2" else HuggingFaceModel
        return which(module, checkpoint, tokenizer=folder, processor=folder)
    return open_inside(checkpoint, folder, config)


def _belongs(key: str, prefix: str) -> bool:
    """Whether a key can be of a model of one tower."""
    return key.startswith(prefix) or key in (*PROJECTIONS, "logit_scale")


def unsupported(checkpoint: Checkpoint, folder: Path, kind: Any) -> BadInput:
    """The error for a model type that uwm does not read."""
    named = "no model_type" if kind is None else f"model_type {kind!r}"
    return BadInput(
        f"{folder}: config.json says {named}, which uwm does not know, though it holds {checkpoint.layout.name}; it "
        f"knows {', '.join((*WHOLE, *SINGLE))}, and the vision tower inside {', '.join(READERS)}"
    )


def _open_pipeline(checkpoint: Checkpoint) -> Model:
    encoders = {}
    for tower in checkpoint.layout.towers:
        scope = tower.prefix.partition("/")[0] + "/"
        config = _config(checkpoint.path / scope, "clip_text_model")
        encoders[scope.rstrip("/")] = module = _module(config, checkpoint, scope, False)
        fill(module, checkpoint, scope=scope, tower=tower)
    return PipelineModel(encoders, checkpoint)


def _config(folder: Path, kind: str | None) -> Any:
    """transformers' config of a folder, of a type that is known to be right."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder), model_type=kind, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadInput(f"{folder}: config.json cannot be used ({str(error).splitlines()[0]})") from None


def _module(config: Any, checkpoint: Checkpoint, scope: str, whole: bool) -> Any:
    """The module that a config describes; of a whole model's config the one tower that is there, unless `whole`."""
    import transformers

    if config.model_type in WHOLE and whole:
        return transformers.AutoModel.from_config(config)
    if config.model_type in WHOLE:
        modality = checkpoint.layout.towers[0].encoder.modality
        config = getattr(config, f"{modality}_config")
    if config.model_type not in SINGLE:
        raise unsupported(checkpoint, checkpoint.path, config.model_type)
    plain, projected = SINGLE[config.model_type]
    stored = any(scope + name in checkpoint.entries for name in PROJECTIONS)
    return getattr(transformers, projected if stored else plain)(config)


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
