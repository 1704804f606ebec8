"""transformers' models: CLIP and its relatives, single encoders, a LLaVA's vision tower, diffusers pipelines."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint import Checkpoint
from ..checkpoint.reach import READERS
from ..errors import BadInput
from ..layouts import Tower
from .base import Model
from .described import built, check_end, check_layers, check_preprocessor, read_config, reason, unusable
from .filling import check_fits, fill
from .preprocessors import ImageProcessor, Patches, Preprocessor
from .tokenizing import FolderTokenizer, folder_filler

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json")
LOADING = threading.Lock()  # threads prepare images, and the first of them loads the preprocessor for all
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

    _preprocessor: type[ImageProcessor] = ImageProcessor

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
        ids, mask = self.tokenizer()(texts)
        self._demand_known(ids)
        return ids, mask

    def _demand_known(self, ids: torch.Tensor) -> None:
        """Refuse tokens that the text tower has no embedding of. Raises BadInput."""
        size = self._text_config.vocab_size
        if ids.numel() and (ids.max() >= size or ids.min() < 0):
            odd = int(ids.max()) if ids.max() >= size else int(ids.min())
            raise BadInput(
                f"{self._folders['tokenizer']}: the tokenizer makes token {odd}, the text tower has {size}; is it the "
                "tokenizer of this model?"
            )

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

    def preprocessor(self) -> Preprocessor:
        return self._preprocessor(self.processor(), self._folders["image preprocessor"], self._taken())

    def _taken(self) -> tuple[int, ...]:
        """The last sides of the vision tower's input."""
        config, size = self._vision_config, self._vision_config.image_size
        return config.num_channels, *((size, size) if isinstance(size, int) else size)

    @property
    def _vision_config(self) -> Any:
        return getattr(self.config, "vision_config", self.config)

    def processor(self) -> Any:
        """transformers' image processor of the folder. Raises BadInput where there is none."""
        self._demand("vision")
        with LOADING:
            if self._processor is None:
                from transformers import AutoImageProcessor

                self._processor = self._side(AutoImageProcessor.from_pretrained, "image preprocessor", PROCESSOR_FILES)
            return self._processor

    def _side(self, loader: Callable[..., Any], what: str, files: tuple[str, ...]) -> Any:
        folder = self._folders[what]
        if folder is None:
            raise BadInput(f"this model has no folder to read its {what} from; pass preprocessed PairBatch tensors")
        if not any((folder / name).is_file() for name in files):
            raise BadInput(
                f"{folder}: no {what} in this folder (none of {', '.join(files)}); copy the original's there"
            )
        for path in (folder / name for name in files if files is PROCESSOR_FILES):
            if path.is_file():
                check_preprocessor(path)
        try:
            return loader(str(folder), local_files_only=True, trust_remote_code=False)
        except unusable() as error:
            raise BadInput(f"{folder}: the {what} cannot be used ({reason(error)})") from None

    def load_sides(self, reads: Collection[str]) -> None:
        """Load what reads captions (``text``) and images (``vision``) already now. Raises BadInput."""
        if "text" in reads:
            self.tokenizer()
        if "vision" in reads:
            self.processor()


class NaFlexModel(HuggingFaceModel):
    """SigLIP 2 of any aspect ratio: pixel values [n, patches, 3·p·p + 3], the last columns mask, rows, columns."""

    _preprocessor = Patches

    def _taken(self) -> tuple[int, ...]:
        return (self._vision_config.num_channels * self._vision_config.patch_size**2,)

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


def open_folder(checkpoint: Checkpoint, reads: Collection[str] = ()) -> Model:
    """Build what the folder's config.json describes and fill it from the checkpoint.

    Args:
        checkpoint: Of the folder.
        reads: As in `uwm.load`; checked of a whole CLIP.

    Raises:
        BadInput: The folder cannot be used.
    """
    from .inside import open_inside

    if (checkpoint.path / "model_index.json").is_file():
        return _open_pipeline(checkpoint)
    tower = checkpoint.layout.towers[0]
    folder = checkpoint.folder_of(tower.name)
    assert folder is not None
    kind = read_config(folder, inner=True).get("model_type")
    if kind in WHOLE or kind in SINGLE:
        whole = kind in WHOLE and any(not _belongs(key, tower.prefix) for key in checkpoint.entries)
        alone = None if whole else tower
        module = _module(_config(folder, kind), checkpoint, folder, whole, tower=alone)
        which = NaFlexModel if kind == "siglip2" else HuggingFaceModel
        model = which(module, checkpoint, tokenizer=folder, processor=folder)
        if whole:
            model.load_sides(reads)
        fill(module, checkpoint, tower=alone)
        return model
    return open_inside(checkpoint, folder, read_config(folder, inner=True))


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
        folder = checkpoint.path / scope
        config = _config(folder, "clip_text_model")
        module = _module(config, checkpoint, folder, False, scope=scope, tower=tower)
        encoders[scope.rstrip("/")] = module
        fill(module, checkpoint, scope=scope, tower=tower)
    return PipelineModel(encoders, checkpoint)


def _config(folder: Path, kind: str | None, inner: bool = False) -> Any:
    """transformers' config of a folder, of a type that is known to be right. Raises BadInput."""
    from transformers import AutoConfig

    read_config(folder, inner)
    try:
        return AutoConfig.from_pretrained(str(folder), model_type=kind, local_files_only=True, trust_remote_code=False)
    except unusable() as error:
        raise BadInput(f"{folder}: config.json cannot be used ({reason(error)})") from None


def _module(
    config: Any, checkpoint: Checkpoint, folder: Path, whole: bool, *, scope: str = "", tower: Tower | None = None
) -> Any:
    """The module that a config describes; of a whole model's config the one tower that is there, unless `whole`.

    Args:
        config: transformers'.
        checkpoint: Whose tensors must fit it.
        folder: Of the config.
        whole: Both towers are there.
        scope, tower: As in `fill`.

    Raises:
        BadInput: A type that uwm does not know, or sizes that are not the stored tensors'.
    """
    import transformers

    if config.model_type in WHOLE and not whole:
        config = getattr(config, f"{checkpoint.layout.towers[0].encoder.modality}_config")
    if config.model_type in WHOLE:
        make = partial(transformers.AutoModel.from_config, config)
    elif config.model_type in SINGLE:
        plain, projected = SINGLE[config.model_type]
        stored = any(scope + name in checkpoint.entries for name in PROJECTIONS)
        make = partial(getattr(transformers, projected if stored else plain), config)
    else:
        raise unsupported(checkpoint, checkpoint.path, config.model_type)
    check_layers(config, checkpoint, folder)
    check_end(config, folder)
    return built(make, checkpoint, folder, lambda draft: check_fits(draft, checkpoint, scope, tower))
