"""open_clip's models: CLIP, CustomTextCLIP, CoCa, timm trunks, and OpenAI's releases, which it spells the same."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import nn

from ..checkpoint import Checkpoint
from ..errors import BadInput
from ..weights import TOWERS
from .base import Model
from .filling import fill
from .hub import network
from .registry import model_config
from .sizes import OPENAI_VOCABULARY, config_of


class OpenClipModel(Model):
    """An open_clip model; `name` is what open_clip calls it, an architecture or ``local-dir:FOLDER``, if anything."""

    def __init__(
        self, module: nn.Module, checkpoint: Checkpoint | None, name: str | None, config: dict[str, Any]
    ) -> None:
        super().__init__(module, checkpoint, bool(config.get("quick_gelu", False)))
        self.name = name
        self.config = config
        self._text: Any = getattr(module, "text", module)
        parts = {"text": self._text, "vision": module.visual}
        for modality in (name for name in TOWERS if name not in self.editable):
            kind = self.nameless[modality] = _kind(parts[modality])
            self.notes.append(
                f"{modality} tower ({kind}): uwm has no names for its weights, so it is not edited; the edit is of the "
                f"{self.editable[0]} tower only, and both are measured"
            )
        self._tokenizer: Any = None
        self._transform: Any = None

    @classmethod
    def open(
        cls,
        checkpoint: Checkpoint,
        arch: str | None,
        quick_gelu: bool | None,
        preprocess: dict[str, Any] | None = None,
    ) -> OpenClipModel:
        """Build the architecture that the folder's config, `arch` or the tensors say, and fill it."""
        name: str | None
        if checkpoint.path.is_dir():
            name = f"local-dir:{checkpoint.path}"
            config = model_config(name) or {}
        else:
            config, name = config_of(checkpoint, arch, quick_gelu)
        with _silenced():
            module = _build(name, config, preprocess or {})
        fill(module, checkpoint)
        return cls(module, checkpoint, name, config)

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        module: Any = self.module
        return module.encode_image(pixel_values)

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, tower: str = "text") -> torch.Tensor:
        module: Any = self.module
        missing = module.context_length - input_ids.shape[1]
        return module.encode_text(nn.functional.pad(input_ids, (0, missing), value=self._pad))

    @property
    def _pad(self) -> int:
        return int(getattr(self._text, "pad_id", 0) or 0)

    @property
    def _appends_class(self) -> bool:
        """Whether a class token follows the caption and is pooled, as in CoCa, which does not attend to padding."""
        return getattr(self._text, "cls_emb", None) is not None

    @property
    def _attends_forwards(self) -> bool:
        """Whether padding takes part: no causal mask and none for padding, as in SigLIP."""
        return getattr(self._text, "attn_mask", 0) is None and not getattr(self._text, "use_pad_mask", False)

    def tokenize(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        if self._tokenizer is None:
            self._tokenizer = self._make_tokenizer()
        ids = self._tokenizer(texts)  # [n, context]
        return ids, self._counted(ids)

    def _counted(self, ids: torch.Tensor) -> torch.Tensor:
        """The tokens that reach the embedding, [n, length], by what the tower attends to and pools."""
        pools = getattr(self._text, "pool_type", getattr(self.module, "text_pool_type", "argmax"))
        if self._attends_forwards or (pools == "last" and not self._appends_class):
            return torch.ones_like(ids)
        if self._appends_class:
            return (ids != self._pad).long()
        if not hasattr(self._text, "attn_mask"):  # a Hugging Face text tower
            return (ids != self._text.config.pad_token_id).long()
        end: Any = getattr(self._text, "eos_id", getattr(self.module, "text_eos_id", 0))
        last = torch.eq(ids, end).int().argmax(-1, keepdim=True) if pools == "eos" else ids.argmax(-1, keepdim=True)
        return (torch.arange(ids.shape[1]) <= last).long()

    def text_mask(self, attention_mask: torch.Tensor, length: int) -> torch.Tensor:
        """As `Model.text_mask`; CoCa's class token, appended and pooled, counts, and all that SigLIP attends to."""
        mask = super().text_mask(attention_mask, length)
        if self._attends_forwards:
            return torch.ones_like(mask)
        if self._appends_class:
            mask[:, -1] = 1
        return mask

    def pools(self, tower: str) -> str:
        """By what the module says: open_clip's configs choose it."""
        part: Any = self._text if tower.startswith("text") else self.module.visual
        if hasattr(part, "trunk"):  # timm
            return "first" if getattr(part.trunk, "global_pool", "") == "token" else "all"
        if hasattr(part, "pooler"):  # a Hugging Face text tower
            return "first" if getattr(part.pooler, "cls_token_position", None) == 0 else "all"
        if getattr(part, "attn_pool", None) is not None:
            return "all"
        named = getattr(part, "pool_type", getattr(part, "text_pool_type", "argmax"))
        named = "last" if self._appends_class and part is self._text else named
        return {"tok": "first", "first": "first", "last": "last", "argmax": "end", "eos": "end"}.get(named, "all")

    def _make_tokenizer(self) -> Any:
        import open_clip

        if self.name is not None:
            try:
                with network(allowed=not self.offline):
                    return open_clip.get_tokenizer(self.name, cache_dir=self.cache_dir)
            except (OSError, ValueError) as error:
                wanted = self.config["text_cfg"].get("hf_tokenizer_name") or self.name
                raise BadInput(f"the tokenizer {wanted!r} cannot be had ({str(error).splitlines()[0]})") from None
        if self.config["text_cfg"]["vocab_size"] != OPENAI_VOCABULARY:
            raise BadInput("this archive has a vocabulary of its own; pass preprocessed PairBatch tensors")
        return open_clip.SimpleTokenizer(context_length=self.config["text_cfg"]["context_length"])

    def preprocess(self, images: list[Image.Image]) -> torch.Tensor:
        if self._transform is None:
            from open_clip.transform import PreprocessCfg, image_transform_v2

            visual: Any = self.module.visual
            self._transform = image_transform_v2(PreprocessCfg(**visual.preprocess_cfg), is_train=False)
        return torch.stack([self._transform(image) for image in images])

    def side_configs(self) -> dict[str, Any]:
        visual: Any = self.module.visual
        preprocess = {key: value for key, value in visual.preprocess_cfg.items() if value is not None}
        return {"open_clip_config.json": {"model_cfg": self.config, "preprocess_cfg": preprocess}}


def _kind(tower: Any) -> str:
    """What a tower is: open_clip's class, or that of the library around which open_clip wraps one of its own."""
    inner = next((getattr(tower, name) for name in ("trunk", "transformer") if hasattr(tower, name)), tower)
    return f"{type(inner).__name__} of {type(inner).__module__.partition('.')[0]}"


def _build(name: str | None, config: dict[str, Any], preprocess: dict[str, Any]) -> nn.Module:
    """A module of random weights, with the preprocessing of its pictures."""
    import open_clip
    from open_clip.factory import set_model_preprocess_cfg
    from open_clip.model import CLIP
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    if name is None:
        module: Any = CLIP(**config)
        set_model_preprocess_cfg(
            module, merge_preprocess_dict(PreprocessCfg(), {"size": config["vision_cfg"]["image_size"]})
        )
    else:
        module = open_clip.create_model(
            name,
            load_weights=False,
            pretrained_text=False,
            pretrained_image=False,
            quick_gelu=bool(config.get("quick_gelu", False)),
        )
    if preprocess:
        set_model_preprocess_cfg(module, merge_preprocess_dict(module.visual.preprocess_cfg, preprocess))
    return module


@contextmanager
def _silenced() -> Iterator[None]:
    """Drop open_clip's warning of random weights (ours follow): it goes to the root logger, and sets logging up."""
    root, handler = logging.getLogger(), logging.NullHandler()

    def keep(record: logging.LogRecord) -> bool:
        return "open_clip" not in record.pathname

    root.addHandler(handler)
    root.addFilter(keep)
    try:
        yield
    finally:
        root.removeFilter(keep)
        root.removeHandler(handler)
