"""One `Model` whatever the family: what the rest of uwm asks of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import nn

from ..checkpoint import Checkpoint
from ..checkpoint.reach import idle, unread
from ..checkpoint.reader import cast_sha256, matrix_sha256
from ..errors import BadInput
from ..layouts import find_tensors, recognise, whole_key
from ..records import to_json
from ..unfinished import Unfinished
from ..weights import TOWERS, WeightId, block_count, match
from .kept import Kept
from .preprocessors import Preprocessor


class EndToken(NamedTuple):
    """The token that ends captions and is pooled, and whether captions with higher ids were pooled there too."""

    token: int
    below_others: bool


def unread_notes(unread: Mapping[WeightId, str]) -> Iterator[str]:
    """A line for every reason why weights are never read."""
    for why in dict.fromkeys(unread.values()):
        blocks = dict.fromkeys(f"{w.tower}.{w.block}" for w in sorted(unread) if unread[w] == why)
        yield (
            f"{', '.join(blocks)}: {why}, so nothing of this is ever read; it is left out of the edit unless a weight "
            "of it is named in full"
        )


class Model(ABC):
    """A CLIP-like model, ready to be observed, patched and asked for embeddings.

    Attributes:
        module: The torch module, in eval mode.
        checkpoint: Where its weights came from; None for a module made in memory.
        layout: Its encoders, by their keys in `module`.
        tensors: Everything that has a name, by its key in `module`.
        weights: Of these the matrices of the blocks' linear layers.
        nameless: Modality -> what its tower is, where it can be embedded but none of its weights has a name.
        quick_gelu: Whether the activation is QuickGELU.
        unread: Of the weights those in blocks that the model around the tower never reads -> why.
        edited: The weights that an open `patched` block has changed.
        notes: What a user should know of how it was read, one line each; every job that opens the model says them.
        end_tokens: Of text towers whose pooled token was checked, the one that ends captions; None where none does.
        pooled_alone: Tower and number of inputs -> whether its last MLP may see the pooled token alone, as
            `uwm.statistics.last_mlp` found it.
        kept: What a job keeps of its work, see `uwm.statistics.sources`; None where nothing is.
        unfinished: Where the work is kept for a run that goes on, if this one is stopped; None where it is not.
        offline, cache_dir: How `uwm.load` was told to fetch; a tokenizer is only loaded when it is asked for.
    """

    offline = False
    cache_dir: str | None = None

    def __init__(self, module: nn.Module, checkpoint: Checkpoint | None, quick_gelu: bool) -> None:
        self.module = module.eval()
        self.checkpoint = checkpoint
        self.quick_gelu = quick_gelu
        self.edited: set[WeightId] = set()
        self.notes: list[str] = [] if checkpoint is None else [*checkpoint.notes]
        self.end_tokens: dict[str, EndToken | None] = {}
        self.pooled_alone: dict[tuple[str, int], bool] = {}
        self.nameless: dict[str, str] = {}
        self.kept: Kept | None = None
        self.unfinished: Unfinished | None = None
        self._stored: dict[WeightId, torch.Tensor] | None = None
        self._parameters = dict(module.named_parameters())
        self.layout = recognise(self._parameters, type(module).__name__)
        self.tensors = find_tensors(self.layout, self._parameters)
        self.weights = {weight: ref for weight, ref in self.tensors.items() if weight.is_matrix_of_block}
        self.unread = {} if checkpoint is None else unread(checkpoint)
        self.notes += unread_notes(self.unread)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return next(self.module.parameters()).dtype

    def trainable(self, weight: WeightId) -> nn.Parameter:
        """The whole parameter that holds a named tensor as it is stored, row blocks of others included."""
        return self._parameters[self.tensors[weight].key]

    def parameter(self, weight: WeightId) -> torch.Tensor:
        """The live values of a named tensor, a matrix as [out, in]; a view: writing to it edits the model."""
        return self.tensors[weight].of(self.trainable(weight).detach())

    def owner(self, weight: WeightId) -> nn.Module:
        """The module to observe for a weight: its linear layer, or the attention around it, which has the same input.

        `nn.MultiheadAttention` calls none of its layers, and timm's EVA not the one that it adds biases to by itself.
        """
        own, _, _ = self.tensors[weight].key.rpartition(".")
        around = self.module.get_submodule(own.rpartition(".")[0])
        adds = weight.slot in ("q_proj", "k_proj", "v_proj") and getattr(around, "q_bias", None) is not None
        return around if adds or isinstance(around, nn.MultiheadAttention) else self.module.get_submodule(own)

    def stored(self, weight: WeightId) -> torch.Tensor:
        """A copy of the unedited values, a matrix as [out, in]: the checkpoint's, or those in memory without one."""
        if self.checkpoint is None:
            return self.parameter(weight).cpu().clone()
        if self._stored is None:
            return self.checkpoint.matrix(weight)
        if weight not in self._stored:
            self._stored[weight] = self.checkpoint.matrix(weight)
        return self._stored[weight].clone()

    @contextmanager
    def stored_at_hand(self) -> Iterator[None]:
        """Read each stored tensor once while the body runs, for edits that are made again and again."""
        before, self._stored = self._stored, self._stored or {}
        try:
            yield
        finally:
            self._stored = before

    @cached_property
    def reshaped(self) -> tuple[WeightId, ...]:
        """Named tensors that the module holds in another shape than the checkpoint: positions that it interpolated."""
        if self.checkpoint is None:
            return ()
        infos = {name: self.checkpoint.info(name) for name in self.tensors if name in self.checkpoint.tensors}
        return tuple(name for name, info in infos.items() if info.shape != tuple(self.parameter(name).shape))

    def check_as_stored(self, purpose: str) -> None:
        """Refuse what converts the stored tensors, where the module computes with others. Raises BadInput."""
        if self.reshaped:
            raise BadInput(
                f"{purpose}: {self.reshaped[0]} is interpolated on loading, which Hugging Face's CLIP does "
                "not do; store it at the config's resolution and context length first"
            )

    def fingerprint(self, weight: WeightId) -> str:
        """sha256 of the stored values."""
        return matrix_sha256(self.stored(weight))

    def casts(self, weight: WeightId) -> dict[str, str]:
        """sha256 of the stored values in each floating dtype, by the dtype's name."""
        return cast_sha256(self.stored(weight))

    @property
    def folder(self) -> Path | None:
        """The folder with the config and the side files of the first tower; None where there is none."""
        return None if self.checkpoint is None else self.checkpoint.folder_of(self.checkpoint.layout.towers[0].name)

    @property
    def editable(self) -> tuple[str, ...]:
        """Of which of ``text`` and ``vision`` the weights have names, so that they can be edited."""
        return tuple(dict.fromkeys(tower.encoder.modality for tower in self.layout.towers))

    @property
    def modalities(self) -> tuple[str, ...]:
        """Which of ``text`` and ``vision`` the model can embed."""
        return tuple(name for name in TOWERS if name in self.editable or name in self.nameless)

    def depth(self, tower: str) -> int:
        """How many blocks of a tower are read, from the first on."""
        return block_count((weight for weight in self.weights if weight not in self.unread), tower)

    def match(self, patterns: str | Sequence[str], modality: str) -> list[WeightId]:
        """Choose among the matrices, as `uwm.weights.match`; those never read are only chosen by their full name."""
        return match(patterns, self.weights, modality, self.unread)

    def idle(self, weights: Iterable[WeightId]) -> list[str]:
        """A line for each of some weights whose edit does nothing."""
        return idle(self.unread, weights)

    @property
    def described(self) -> str:
        """What manifests call it: the layout, and what the towers without names are."""
        return " + ".join((self.layout.name, *self.nameless.values()))

    def lacks(self, modality: str) -> str:
        """Why a modality has nothing to edit, for messages."""
        if modality in self.nameless:
            return f"uwm cannot edit the model's {modality} tower ({self.nameless[modality]})"
        return f"the model has no {modality} side"

    @abstractmethod
    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Image embeddings [n, dim], not normalised, of preprocessed pictures [n, 3, h, w]."""

    @abstractmethod
    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, tower: str = "text") -> torch.Tensor:
        """Text embeddings [n, dim], not normalised, of tokens [n, length]; `tower` where there are several."""

    @abstractmethod
    def tokenize(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and their mask (1 from the start to the end token), [n, length] each; cut to the context length."""

    @property
    @abstractmethod
    def context_length(self) -> int:
        """The most tokens of a caption that the text tower reads, start and end token included."""

    @abstractmethod
    def caption_lengths(self, texts: list[str]) -> list[int]:
        """How many tokens each caption has before `tokenize` cuts it, start and end token included."""

    @abstractmethod
    def preprocessor(self) -> Preprocessor:
        """What `preprocess` does, as a function that can be pickled, without the model."""

    def preprocess(self, images: list[Image.Image]) -> torch.Tensor:
        """RGB pictures to the model's input, [n, 3, h, w]."""
        return self.preprocessor()(images)

    def text_mask(self, attention_mask: torch.Tensor, length: int) -> torch.Tensor:
        """Which inputs of a text layer count, [n, length]: those that reach the embedding.

        CLIP attends only backwards and pools the end token, so that is what the attention mask says, padded with zeros
        to the length that the tower works on.
        """
        missing = length - attention_mask.shape[1]
        return nn.functional.pad(attention_mask, (0, missing)) if missing else attention_mask

    def image_mask(self, pixel_values: torch.Tensor) -> torch.Tensor | None:
        """Which inputs of a vision layer count, [n, tokens]; None: all of them, the class token included."""
        return None

    def pooled(self, tower: str, mask: torch.Tensor | None, length: int) -> torch.Tensor | None:
        """Which token of a layer's input [n, length, width] the embedding is read from.

        Args:
            tower: ``text``, ``text_2`` or ``vision``.
            mask: The attention mask or `text_mask`, [n, up to length]; None where all tokens count.
            length: Tokens of the input; the layers of an attention-pooling head see one.

        Returns:
            Indices, int64 [n], or [1] without a mask; None where the embedding is read from more than one token.
        """
        pools = "first" if length == 1 else self.pools(tower)
        if pools == "all":
            return None
        if mask is None:
            return torch.tensor([0 if pools == "first" else length - 1], device=self.device)
        if pools == "end":
            counted = self.text_mask(mask, length) > 0
            return (counted * torch.arange(1, length + 1, device=mask.device)).argmax(1)
        return torch.full((len(mask),), 0 if pools == "first" else length - 1, device=mask.device)

    def padded(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, tower: str = "text"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Captions as diffusion models read them: padded to the context length, every token counted.

        Args:
            input_ids, attention_mask: From `tokenize`, [n, length].
            tower: Whose padding it is.

        Returns:
            The same and a mask of ones, [n, context length].
        """
        missing, filler = self.context_length - input_ids.shape[1], self.filler(tower)
        ids = torch.where(attention_mask > 0, input_ids, torch.full_like(input_ids, filler))
        ids = nn.functional.pad(ids, (0, missing), value=filler)
        return ids, torch.ones_like(ids)

    def filler(self, tower: str) -> int:
        """The token that fills captions up."""
        ids, _ = self.tokenize(["", "a " * self.context_length])
        return int(ids[0, -1])

    def before_patches(self, tower: str) -> int:
        """How many of a vision tower's first tokens are no patches: 1 with a class token."""
        return int(self.pools(tower) == "first")

    def leave_unread(self, why: Mapping[WeightId, str]) -> None:
        """Note that what reads the model does not read some weights, so that no edit chooses them by itself."""
        self.unread = {**self.unread, **why}
        self.notes += unread_notes(why)

    def pools(self, tower: str) -> str:
        """Which output of the last block becomes the embedding, as `layouts.Encoder` has it."""
        found = self.layout.tower(tower)
        assert found is not None
        return found.encoder.pools

    def pooling_setting(self, tower: str) -> str:
        """What decides at which token the library reads the embedding, for messages; empty where it is no setting."""
        return ""

    def last_mlp(self, tower: str) -> tuple[WeightId, WeightId] | None:
        """``fc1`` and ``fc2`` of the MLP whose output at the pooled token becomes the embedding.

        Only residual, LayerNorm and projection follow it. It is that of an attention-pooling head, or else that of the
        last block; None where there is none such.
        """
        found = self.layout.tower(tower)
        assert found is not None
        if any(whole_key(found.prefix, key) in self._parameters for key in found.encoder.deeper):
            return None
        head, last = WeightId(tower, None, "head.fc1"), block_count(self.weights, tower) - 1
        if last >= self.depth(tower):
            return None
        if head in self.tensors:
            return head, WeightId(tower, None, "head.fc2")
        return None if self.pools(tower) == "all" else (WeightId(tower, last, "fc1"), WeightId(tower, last, "fc2"))

    def side_configs(self) -> dict[str, Any]:
        """File name -> JSON that a folder with these weights needs, for weights that came without a folder."""
        return {}

    def write_side_files(self, folder: Path) -> None:
        """Write beside weights that came without a folder what their library needs to load them."""
        if self.checkpoint is not None and not self.checkpoint.path.is_dir():
            for name, config in self.side_configs().items():
                (folder / name).write_text(to_json(config) + "\n", "utf-8")
