"""Canonical names of linear-layer weights, the same for every family: ``vision.11.fc2``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .errors import BadInput

TOWERS = ("text", "vision")
_TOWER = re.compile(r"(text|vision)(_[2-9])?")  # text_2: the second text encoder of Stable Diffusion XL
SLOTS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


@dataclass(frozen=True, order=True)
class WeightId:
    """One linear layer's weight, [out, in], by tower, block and slot; ``str()`` gives ``"vision.11.fc2"``."""

    tower: str
    block: int
    slot: str

    def __str__(self) -> str:
        return f"{self.tower}.{self.block}.{self.slot}"

    @property
    def modality(self) -> str:
        """``"text"`` or ``"vision"``, whatever the number of the tower."""
        return self.tower.partition("_")[0]

    @classmethod
    def parse(cls, name: str) -> WeightId:
        """Read ``"vision.11.fc2"``. Raises BadInput when it is no such name."""
        tower, _, rest = name.partition(".")
        block, _, slot = rest.partition(".")
        if not _TOWER.fullmatch(tower) or slot not in SLOTS or not block.isdecimal():
            raise BadInput(f"{name!r} is no weight name; expected TOWER.BLOCK.SLOT such as vision.11.fc2")
        return cls(tower, int(block), slot)


@dataclass(frozen=True)
class WeightRef:
    """Where a weight lives in one layout: a tensor's key and, in a fused tensor, which equal part of its rows."""

    key: str
    part: int = 0
    parts: int = 1

    def rows(self, total: int) -> slice:
        """The row block of this weight in a tensor of `total` rows."""
        size = total // self.parts
        return slice(self.part * size, (self.part + 1) * size)


def match(patterns: str | Sequence[str], weights: Iterable[WeightId], tower: str) -> list[WeightId]:
    """Choose weights of one tower.

    Args:
        patterns: Slots (``out_proj``), globs or full names (``vision.*.fc2``, ``vision.[6-11].fc2``), as a
            sequence or comma-separated; the empty string or ``"none"`` chooses nothing.
        weights: What exists.
        tower: ``"text"`` or ``"vision"``; where there are several text towers, a slot means all of them.

    Returns:
        The chosen weights, sorted.

    Raises:
        BadInput: A pattern matches nothing; the message lists what exists.
    """
    if isinstance(patterns, str):
        patterns = [p.strip() for p in patterns.split(",") if p.strip()]
    here = sorted(w for w in weights if w.modality == tower)
    chosen: set[WeightId] = set()
    for pattern in patterns:
        if pattern == "none":
            continue
        full = pattern if "." in pattern else f"{tower}*.*.{pattern}"
        found = [w for w in here if re.fullmatch(_regex(full), str(w))]
        if not found:
            raise BadInput(f"--{tower}-layers {pattern!r} matches no weight; the {tower} tower has {_listing(here)}")
        chosen.update(found)
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
    blocks = max(w.block for w in weights)
    slots = sorted({w.slot for w in weights}, key=SLOTS.index)
    return f"blocks 0–{blocks} with {', '.join(slots)}"
