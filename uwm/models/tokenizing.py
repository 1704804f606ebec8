"""Captions to tokens: how long they are before they are cut, and what a folder's tokenizer does not do by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..errors import BadInput

NO_LENGTH = 10**9  # tokenizers whose files name no length say some 1e30
LOWER_CASED = ("GemmaTokenizer",)  # SigLIP 2's: it keeps capital letters, and the model was trained without


class FolderTokenizer:
    """transformers' tokenizer of a folder, for a text tower that reads so many tokens.

    Attributes:
        notes: Where it differs from transformers' own pipelines, one line each.
    """

    def __init__(self, tokenizer: Any, length: int, siglip: bool) -> None:
        self._tokenizer, self._length, self._siglip = tokenizer, length, siglip
        self._lower = siglip and _keeps_case(tokenizer) and _made_for_lower_case(tokenizer)
        self.notes = [*self._differences()]

    def __call__(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and their mask, [n, length] each; SigLIP was trained on padded captions, all tokens of which count."""
        padding = "max_length" if self._siglip else True
        cut = {"truncation": True, "max_length": self._length}
        batch = self._tokenizer(self._cleaned(texts), padding=padding, return_tensors="pt", **cut)
        ids = batch["input_ids"]
        return ids, torch.ones_like(ids) if self._siglip else batch["attention_mask"]

    def lengths(self, texts: list[str]) -> list[int]:
        """Tokens of each caption before it is cut."""
        return [len(ids) for ids in self._tokenizer(self._cleaned(texts), verbose=False)["input_ids"]]

    def _cleaned(self, texts: list[str]) -> list[str]:
        return [text.lower() for text in texts] if self._lower else texts

    def _differences(self) -> Iterator[str]:
        says = self._tokenizer.model_max_length
        if says != self._length and says < NO_LENGTH:
            yield (
                f"captions are cut at the {self._length} tokens that the model reads; its tokenizer's model_max_length "
                f"is {says}, at which transformers' pipelines cut"
            )
        if self._siglip and _keeps_case(self._tokenizer):
            yield (
                "captions are lower-cased, as SigLIP models are trained; this folder's tokenizer does not do it, so do "
                "it wherever the model is used"
                if self._lower
                else "captions are not lower-cased: this folder's tokenizer keeps capital letters, and SigLIP models "
                "are trained without"
            )


def folder_filler(folder: Path) -> int:
    """The token by which a folder's tokenizer fills captions up. Raises BadInput where there is none."""
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False).pad_token_id
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadInput(f"{folder}: the tokenizer cannot be used ({str(error).splitlines()[0]})") from None
    if found is None:
        raise BadInput(f"{folder}: the tokenizer has no token to fill captions up with; copy the original's there")
    return int(found)


def _keeps_case(tokenizer: Any) -> bool:
    upper, lower = (tokenizer(text)["input_ids"] for text in ("A DOG", "a dog"))
    return upper != lower


def _made_for_lower_case(tokenizer: Any) -> bool:
    return bool(tokenizer.init_kwargs.get("do_lower_case")) or type(tokenizer).__name__ in LOWER_CASED


def open_clip_lengths(tokenizer: Any, texts: list[str]) -> list[int]:
    """Tokens of each caption before one of open_clip's tokenizers cuts it."""
    inner = getattr(tokenizer, "tokenizer", None)  # transformers', inside of open_clip's
    if inner is None:
        return [len(tokenizer.encode(text)) + 2 for text in texts]  # and the start and the end token
    clips = tokenizer.tokenizer_mode == "clips"  # open_clip adds three special tokens itself
    rows = inner([tokenizer.clean_fn(text) for text in texts], add_special_tokens=not clips, verbose=False)
    return [len(ids) + 3 * clips for ids in rows["input_ids"]]
