"""open_clip's models: CLIP, CustomTextCLIP, CoCa, timm trunks, and OpenAI's releases, which it spells the same."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint import Checkpoint
from ..errors import BadInput
from ..weights import TOWERS, WeightId
from .base import Model
from .described import reason, unusable
from .filling import fill
from .hub import network
from .open_clip_configs import check_open_clip_folder
from .open_clip_repairs import REPAIRED, repaired
from .preprocessors import Preprocessor, Transforms
from .registry import model_config
from .sizes import OPENAI_VOCABULARY, describe
from .tokenizing import open_clip_lengths

BROKEN_POOLERS = ("MaxPooler",)


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
        self._preprocessor: Preprocessor | None = None

    @classmethod
    def open(
        cls,
        checkpoint: Checkpoint,
        arch: str | None,
        quick_gelu: bool | None,
        preprocess: str | None = None,
    ) -> OpenClipModel:
        """Build the architecture that the folder's config, `arch` or the tensors say, and fill it."""
        name: str | None
        bare = None
        if checkpoint.path.is_dir():
            check_open_clip_folder(checkpoint)
            name = f"local-dir:{checkpoint.path}"
            config = model_config(name) or {}
        else:
            bare = describe(checkpoint, arch, quick_gelu, preprocess)
            config, name = bare.config, bare.arch
        with _silenced():
            module = _build(name, config, {} if bare is None else bare.preprocess)
        fill(module, checkpoint, repair=repaired, repairable=REPAIRED)
        model = cls(module, checkpoint, name, config)
        model.notes += [] if bare is None else bare.notes
        model.notes += [_interpolated(model, name) for name in model.reshaped]
        return model

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        module: Any = self.module
        return module.encode_image(pixel_values)

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, tower: str = "text") -> torch.Tensor:
        module: Any = self.module
        missing = 0 if self._by_transformers else self._text.context_length - input_ids.shape[1]
        if missing and self._attends_forwards:
            raise BadInput(
                f"this text tower attends to padding: pass all {self._text.context_length} tokens of a caption, as its "
                f"tokenizer makes them, not {input_ids.shape[1]}"
            )
        return module.encode_text(nn.functional.pad(input_ids, (0, missing), value=self._pad))

    @property
    def _pad(self) -> int:
        return int(getattr(self._text, "pad_id", 0) or 0)

    @property
    def _by_transformers(self) -> bool:
        """Whether transformers makes the text tower: it takes captions of any length, and masks its own padding."""
        return hasattr(self._text, "pooler")

    @property
    def _appends_class(self) -> bool:
        """Whether a class token follows the caption and is pooled, as in CoCa, which does not attend to padding."""
        return getattr(self._text, "cls_emb", None) is not None

    @property
    def _attends_forwards(self) -> bool:
        """Whether padding takes part: no causal mask and none for padding, as in SigLIP."""
        return getattr(self._text, "attn_mask", 0) is None and not getattr(self._text, "use_pad_mask", False)

    def tokenize(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        ids = self.tokenizer()(texts)  # [n, context]
        if ids.numel() and ids.max() >= self._text.vocab_size:
            raise BadInput(
                f"the tokenizer makes token {int(ids.max())}, the text tower has {self._text.vocab_size}; is it the "
                "tokenizer of this model?"
            )
        return ids, self._counted(ids)

    @property
    def context_length(self) -> int:
        return int(self.tokenizer().context_length)

    def caption_lengths(self, texts: list[str]) -> list[int]:
        return open_clip_lengths(self.tokenizer(), texts)

    def tokenizer(self) -> Any:
        """open_clip's tokenizer of this model. Raises BadInput where it cannot be had."""
        if self._tokenizer is None:
            self._tokenizer = self._make_tokenizer()
        return self._tokenizer

    def _counted(self, ids: torch.Tensor) -> torch.Tensor:
        """The tokens that reach the embedding, [n, length], by what the tower attends to and pools."""
        pools = self._text_pools
        if self._attends_forwards or (pools == "last" and not self._appends_class):
            return torch.ones_like(ids)
        if self._appends_class:
            return (ids != self._pad).long()
        if self._by_transformers:
            return (ids != self._text.config.pad_token_id).long()
        return (torch.arange(ids.shape[1]) <= self._last(ids)[:, None]).long()

    def _last(self, ids: torch.Tensor) -> torch.Tensor:
        """Where captions end by their tokenizer, [n]: at the end token, or where they have none before the padding."""
        named = getattr(self._tokenizer, "tokenizer", self._tokenizer)  # open_clip's wrapper around transformers' own
        found = (getattr(named, name, None) for name in ("eot_token_id", "eos_token_id", "sep_token_id"))
        is_end: Any = ids == next((end for end in found if end is not None), -1)
        not_padding = torch.arange(ids.shape[1]) * (ids != (getattr(named, "pad_token_id", None) or 0))
        return torch.where(is_end.any(1), is_end.int().argmax(1), not_padding.argmax(1))

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
        if part is self._text and self._by_transformers:
            return "first" if getattr(part.pooler, "cls_token_position", None) == 0 else "all"
        if getattr(part, "attn_pool", None) is not None:
            return "all"
        named = getattr(part, "pool_type", getattr(part, "text_pool_type", "argmax"))
        named = "last" if self._appends_class and part is self._text else named
        found = {"tok": "first", "first": "first", "last": "last", "argmax": "end", "eos": "end"}.get(named, "all")
        lost = part is self._text and self._attends_forwards  # a mask of all tokens does not tell the end of a caption
        return "all" if found == "end" and lost else found

    @property
    def _text_pools(self) -> str:
        """open_clip's pool_type of the text tower."""
        return getattr(self._text, "pool_type", getattr(self.module, "text_pool_type", "argmax"))

    def pooling_setting(self, tower: str) -> str:
        pools = self._text_pools
        end = getattr(self._text, "eos_id", getattr(self.module, "text_eos_id", None))
        rule = f"with eos_id {end}" if pools == "eos" else "(argmax is the token of the highest id)"
        return f"open_clip's text_cfg says pool_type {pools} {rule}"

    def _make_tokenizer(self) -> Any:
        import open_clip

        if self.name is not None:
            wanted = self.config["text_cfg"].get("hf_tokenizer_name") or self.name
            try:
                with network(allowed=not self.offline):
                    made = open_clip.get_tokenizer(self.name, cache_dir=self.cache_dir)
            except unusable() as error:
                raise BadInput(f"the tokenizer {wanted!r} cannot be had ({reason(error)})") from None
            _check_vocabulary(made, self.checkpoint)
            return made
        if self.config["text_cfg"]["vocab_size"] != OPENAI_VOCABULARY:
            raise BadInput("this archive has a vocabulary of its own; pass preprocessed PairBatch tensors")
        return open_clip.SimpleTokenizer(context_length=self.config["text_cfg"]["context_length"])

    def preprocessor(self) -> Preprocessor:
        if self._preprocessor is None:
            from open_clip.transform import PreprocessCfg, image_transform_v2

            visual: Any = self.module.visual
            self._preprocessor = Transforms(image_transform_v2(PreprocessCfg(**visual.preprocess_cfg), is_train=False))
        return self._preprocessor

    def side_configs(self) -> dict[str, Any]:
        visual: Any = self.module.visual
        preprocess = {key: value for key, value in visual.preprocess_cfg.items() if value is not None}
        return {"open_clip_config.json": {"model_cfg": self.config, "preprocess_cfg": preprocess}}

    def write_side_files(self, folder: Path) -> None:
        """As `Model.write_side_files`, with the files of transformers' tokenizer where open_clip uses one."""
        super().write_side_files(folder)
        if self.checkpoint is None or self.checkpoint.path.is_dir() or "text" not in self.modalities:
            return
        try:
            inner = getattr(self.tokenizer(), "tokenizer", None)
        except BadInput as error:
            self.notes.append(f"the output has no tokenizer: {error}")
            return
        if inner is not None:
            inner.save_pretrained(str(folder))


def _check_vocabulary(tokenizer: Any, checkpoint: Checkpoint | None) -> None:
    """Refuse a tokenizer of the folder that has no vocabulary there: transformers would make up an empty one."""
    inner = getattr(tokenizer, "tokenizer", None)  # transformers'; open_clip's own has none
    if inner is None or checkpoint is None or not checkpoint.path.is_dir():
        return
    names = sorted(set(inner.vocab_files_names.values()))
    if not any((checkpoint.path / name).is_file() for name in names):
        raise BadInput(
            f"{checkpoint.path}: the tokenizer's vocabulary is missing (none of {', '.join(names)}); copy the "
            "original's there"
        )


def _interpolated(model: OpenClipModel, name: WeightId) -> str:
    """What a user should know of positions that were stored for another resolution or context length."""
    assert model.checkpoint is not None
    stored, computed = model.checkpoint.info(name).shape[0], len(model.parameter(name))
    return (
        f"{name}: {stored} positions are stored, the config asks for {computed}; they are interpolated as open_clip "
        "does it, and written as they are stored"
    )


def _check_runs(name: str | None, module: Any) -> None:
    """Refuse what open_clip builds and then cannot compute. Raises BadInput."""
    if type(getattr(getattr(module, "text", None), "pooler", None)).__name__ in BROKEN_POOLERS:
        raise BadInput(f"{name}: hf_pooler_type max_pooler fails in open_clip itself: it masks with whole numbers")
    patches = getattr(getattr(module.visual, "trunk", None), "patch_embed", None)
    fixed = getattr(patches, "img_size", None) if getattr(patches, "strict_img_size", False) else None
    if fixed is not None and tuple(fixed) != tuple(module.visual.image_size):
        raise BadInput(
            f"{name}: image_size says {list(module.visual.image_size)}, timm's model of that name takes {list(fixed)} "
            "only; set image_size to that"
        )


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
        activation = bool(config.get("quick_gelu", False))
        nothing = {"load_weights": False, "pretrained_text": False, "pretrained_image": False}
        try:
            module = open_clip.create_model(name, quick_gelu=activation, **nothing)
        except unusable() as error:
            tower = config.get("text_cfg", {}).get("hf_model_name")
            about = f"; the config of its text tower, {tower!r}, comes from the Hub or its cache" if tower else ""
            raise BadInput(f"{name}: open_clip cannot build it ({reason(error)}){about}") from None
    _check_runs(name, module)
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
