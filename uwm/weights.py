"""Canonical names of tensors, the same for every family: ``vision.11.fc2``, ``vision.11.fc2.bias``, ``text.proj``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import total_ordering
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import BadInput
from .schema import TEXT, Unexpected

if TYPE_CHECKING:
    import numpy as np
    import torch

TOWERS = ("text", "vision")
_BLOCK = re.compile(r"0|[1-9][0-9]{0,5}")
_TOWER = re.compile(r"(text|vision)(_[2-9])?")  # text_2: the second text encoder of Stable Diffusion XL
SLOTS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")  # the linear layers of a block
GATE = "gate"  # the third matrix of a gated MLP: fc2(act(gate x) * fc1 x)
MATRICES = (*SLOTS, GATE)
NORMS = ("norm1", "norm2")  # of a block: beside attention and beside the MLP
TOWER_SLOTS = (  # of the tower as a whole; `norm` is the LayerNorm before the projection, `head` pools by attention
    "token_embedding", "class_embedding", "patch_embedding", "position_embedding", "pre_norm", "norm",
    "head.norm", "head.fc1", "head.fc2", "proj",
)  # fmt: skip

Array = TypeVar("Array", "np.ndarray", "torch.Tensor")


@total_ordering
@dataclass(frozen=True)
class WeightId:
    """One tensor by tower, block and slot; ``str()`` gives ``"vision.11.fc2"``.

    Attributes:
        tower: ``text``, ``vision`` or ``text_2``.
        block: Number of the transformer block; None for a tensor of the whole tower, which sorts after all blocks.
        slot: One of MATRICES or NORMS in a block and of TOWER_SLOTS outside; with ``.bias`` the bias beside it.
    """

    tower: str
    block: int | None
    slot: str

    def __str__(self) -> str:
        return ".".join(str(part) for part in (self.tower, self.block, self.slot) if part is not None)

    def __lt__(self, other: WeightId) -> bool:
        return self._order < other._order

    @property
    def _order(self) -> tuple[str, bool, int, str]:
        return self.tower, self.block is None, self.block or 0, self.slot

    @property
    def modality(self) -> str:
        """``"text"`` or ``"vision"``, whatever the number of the tower."""
        return self.tower.partition("_")[0]

    @property
    def is_matrix_of_block(self) -> bool:
        """Whether this is the matrix of a linear layer in a block."""
        return self.block is not None and self.slot in MATRICES

    @classmethod
    def parse(cls, name: str) -> WeightId:
        """Read ``"vision.11.fc2"`` or ``"text.proj"``. Raises BadInput when it is no such name."""
        tower, _, rest = name.partition(".")
        block, _, slot = rest.partition(".") if rest[:1].isdecimal() else ("", "", rest)
        known = MATRICES + NORMS if block else TOWER_SLOTS
        numbered = _BLOCK.fullmatch(block or "0")  # one way to write a number, and none of thousands of digits
        if not _TOWER.fullmatch(tower) or slot.removesuffix(".bias") not in known or not numbered:
            raise BadInput(
                f"{name!r} is no weight name; expected TOWER.BLOCK.SLOT such as vision.11.fc2, "
                "or TOWER.SLOT such as vision.proj"
            )
        return cls(tower, int(block) if block else None, slot)


def weight_name(value: Any, place: str) -> None:
    """Check the name of a tensor in a record. Raises `Unexpected`."""
    TEXT(value, place)
    try:
        WeightId.parse(value)
    except BadInput:
        raise Unexpected(place, "the name of a tensor such as vision.11.fc2", value) from None


@dataclass(frozen=True)
class WeightRef:
    """Where a tensor lives in one layout.

    Attributes:
        key: Of the stored tensor.
        part, parts: Which of the equal row blocks of a fused tensor.
        transposed: Whether it is stored as [in, out].
    """

    key: str
    part: int = 0
    parts: int = 1
    transposed: bool = False

    def rows(self, total: int) -> slice:
        """The row block of this weight in a tensor of `total` rows."""
        size = total // self.parts
        return slice(self.part * size, (self.part + 1) * size)

    def of(self, stored: Array) -> Array:
        """The view of the stored tensor that is this one, [out, in]."""
        whole = stored.T if self.transposed else stored
        return whole[self.rows(len(whole))] if self.parts > 1 else whole


def block_count(weights: Iterable[WeightId], tower: str) -> int:
    """How many blocks a tower has, by the names that are there."""
    return 1 + max((w.block for w in weights if w.tower == tower and w.block is not None), default=-1)


def match(
    patterns: str | Sequence[str], weights: Iterable[WeightId], tower: str, unread: Mapping[WeightId, str] | None = None
) -> list[WeightId]:
    """Choose among the linear layers of one tower's blocks.

    Args:
        patterns: Slots (``out_proj``), globs or full names (``vision.*.fc2``, ``vision.[6-11].fc2``), as a
            sequence or comma-separated; the empty string or ``"none"`` chooses nothing.
        weights: What exists; only the matrices of blocks are chosen from.
        tower: ``"text"`` or ``"vision"``; where there are several text towers, a slot means all of them.
        unread: Weights that the model around the tower never reads -> why. Only a full name chooses one.

    Returns:
        The chosen weights, sorted.

    Raises:
        BadInput: A pattern matches nothing, or nothing that is read; the message lists what exists.
    """
    if isinstance(patterns, str):
        patterns = [p.strip() for p in patterns.split(",") if p.strip()]
    here = sorted(w for w in weights if w.modality == tower and w.is_matrix_of_block)
    chosen: set[WeightId] = set()
    for pattern in patterns:
        if pattern == "none":
            continue
        full = pattern if "." in pattern else f"{tower}*.*.{pattern}"
        found = [w for w in here if re.fullmatch(_regex(full), str(w))]
        if not found:
            raise BadInput(f"--{tower}-layers {pattern!r} matches no weight; the {tower} tower has {_listing(here)}")
        read = [w for w in found if w not in (unread or {}) or str(w) == pattern]
        if not read:
            why = (unread or {})[found[0]]
            raise BadInput(f"--{tower}-layers {pattern!r} matches only weights that are never read: {why}")
        chosen.update(read)
    return sorted(chosen)


def _regex(glob: str) -> str:
    """A glob as a regular expression: ``*`` within one part, ``[6-11]`` a range of numbers."""
    pieces = re.split(r"(\*|\[\d+-\d+\])", glob)
    return "".join(_piece(p) for p in pieces)


def _piece(piece: str) -> str:
    if piece == "*":
        return r"[^.]*"
    if span := re.fullmatch(r"\[(\d+)-(\d+)\]", piece):
        return "(?:" + "|".join(str(n) for n in range(int(span[1]), int(span[2]) + 1)) + ")"
    return re.escape(piece)


def _listing(weights: list[WeightId]) -> str:
    if not weights:
        return "none"
    last = max(block_count(weights, w.tower) for w in weights) - 1
    slots = sorted({w.slot for w in weights}, key=MATRICES.index)
    return f"blocks 0–{last} with {', '.join(slots)}"
