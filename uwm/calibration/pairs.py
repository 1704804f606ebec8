"""Pairs of safe and unsafe captions and pictures, and ordered sets of them: split, sub-sampled, fingerprinted."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import BadInput
from .groups import CAPTION, IMAGE, ImageHashes, Item, connected, draw, same_caption
from .sides import swapped

TEXT_KEYS = ("safe_text", "unsafe_text")
IMAGE_KEYS = ("safe_image", "unsafe_image")
LABEL_KEYS = {"unsafe_text_label": "unsafe_text", "unsafe_image_label": "unsafe_image"}  # label -> what it is of
LABELS = ("safe", "unsafe")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class CalibrationPair:
    """One quadruple: safe and unsafe text, safe and unsafe picture; either modality may be missing.

    `missing` names the pictures, of `IMAGE_KEYS`, that the set speaks of and whose files are not there. The labels say
    whether what stands on the unsafe side is unsafe in truth, ``"unsafe"``, or turned out ``"safe"``; only ShieldCLIP
    heeds them. Pairs of one `group` are partners of each other in retrieval, such as several captions of one scene.
    """

    id: str
    concept: str = ""
    safe_text: str | None = None
    unsafe_text: str | None = None
    safe_image: Path | None = None
    unsafe_image: Path | None = None
    split: str = ""
    missing: tuple[str, ...] = ()
    unsafe_text_label: str = "unsafe"
    unsafe_image_label: str = "unsafe"
    group: str = ""

    @property
    def has_text(self) -> bool:
        """Both captions are there."""
        return self.safe_text is not None and self.unsafe_text is not None

    @property
    def has_image(self) -> bool:
        """Both pictures are there."""
        return self.safe_image is not None and self.unsafe_image is not None

    def content(self, hashed: ImageHashes) -> tuple[str | None, ...]:
        """Both captions and the sha256 of both pictures: equal for equal pairs, wherever they are."""
        hashes = (None if path is None else hashed(path) for path in (self.safe_image, self.unsafe_image))
        return (self.safe_text, self.unsafe_text, *hashes)

    def items(self, hashed: ImageHashes) -> frozenset[Item]:
        """What a model sees of it, on whichever side: captions up to `same_caption`, images by their files' bytes."""
        texts = (self.safe_text, self.unsafe_text)
        images = (self.safe_image, self.unsafe_image) if self.has_image else ()
        return frozenset(
            [(CAPTION, same_caption(text)) for text in texts if text is not None]
            + [(IMAGE, hashed(path)) for path in images if path is not None]
        )


@dataclass(frozen=True)
class CalibrationSet:
    """An ordered set of pairs.

    Attributes:
        skipped: How many pairs were skipped for what while the files were read.
        notes: What a user should know about how the set was drawn.
        hashed: sha256 of images; the parts of a set share it, so that no image is read twice for it.
    """

    pairs: tuple[CalibrationPair, ...]
    root: Path
    skipped: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    hashed: ImageHashes = field(default_factory=ImageHashes, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def name(self) -> str:
        """The name of its folder, for people."""
        return self.root.resolve().name

    def missing(self) -> dict[str, int]:
        """How many of these pairs lack which picture; they serve with their captions only."""
        counts = {f"missing_{key}": sum(key in pair.missing for pair in self.pairs) for key in IMAGE_KEYS}
        return {reason: count for reason, count in counts.items() if count}

    def warnings(self) -> list[str]:
        """What was skipped, what is missing, how it was drawn and whether its sides are swapped, a line each."""
        skipped = [f"{n} pairs skipped: {reason.replace('_', ' ')}" for reason, n in self.skipped.items() if n]
        missing = [
            f"{n} of {len(self)} pairs have captions only: {reason.replace('_', ' ')}"
            for reason, n in self.missing().items()
        ]
        return [*skipped, *missing, *self.notes, *filter(None, [swapped(self.pairs)])]

    def items(self) -> list[frozenset[Item]]:
        """The captions and images of each pair, see `CalibrationPair.items`."""
        return [pair.items(self.hashed) for pair in self.pairs]

    def splits(self) -> list[str]:
        """The names of the splits that occur, sorted."""
        return sorted({p.split for p in self.pairs})

    def split(self, name: str) -> CalibrationSet:
        """The pairs of one split. Raises BadInput when there are none."""
        chosen = tuple(p for p in self.pairs if p.split == name)
        if not chosen:
            raise BadInput(f"{self.root}: no pair has split {name!r}; the set has {', '.join(self.splits()) or 'none'}")
        return replace(self, pairs=chosen)

    def limit(self, n: int | None, seed: int = 0) -> CalibrationSet:
        """At most n pairs, drawn with the seed, in their old order."""
        if n is not None and n < 1:
            raise BadInput(f"--limit {n}: expected at least 1")
        if n is None or n >= len(self):
            return self
        rows = sorted(random.Random(seed).sample(range(len(self)), n))
        return replace(self, pairs=tuple(self.pairs[i] for i in rows))

    def holdout(self, share: float, seed: int = 0, flag: str = "--holdout") -> tuple[CalibrationSet, CalibrationSet]:
        """Two sets without a caption or image in common: for calibration, and about a share held out for measuring.

        Args:
            share: Of the pairs; pairs that are connected by shared captions or images stay together.
            seed: Draws them.
            flag: What errors call the share.

        Raises:
            BadInput: No such share, one pair only, or all pairs are connected.
        """
        if not 0 < share < 1:
            raise BadInput(f"{flag} {share}: expected a share between 0 and 1")
        remedy = " (or pass --eval)" if flag == "--holdout" else ""
        if len(self) < 2:
            raise BadInput(f"{self.root}: {len(self)} pair; at least 2 are needed to hold one out{remedy}")
        groups = connected(self.items())
        if max(groups) == 0:
            raise BadInput(
                f"{self.root}: all {len(self)} pairs are connected by captions or images that they share, so none can "
                f"be held out for {flag}; give the pairs captions and images of their own{remedy}"
            )
        wanted = min(len(self) - 1, max(1, round(share * len(self))))
        out = draw(groups, wanted, seed)
        keep = tuple(p for i, p in enumerate(self.pairs) if i not in out)
        held = tuple(p for i, p in enumerate(self.pairs) if i in out)
        notes = self.notes
        if not wanted <= 2 * len(held) <= 4 * wanted:
            notes += (
                f"{len(held)} of {len(self)} pairs are held out where {flag} asks for {wanted}: "
                f"{max(Counter(groups).values())} are connected by captions or images that they share",
            )
        return replace(self, pairs=keep), replace(self, pairs=held, notes=notes)

    def fingerprint(self) -> str:
        """sha256 over the captions, tags, picture bytes, and labels that say safe, of all pairs in order."""
        digest = hashlib.sha256()
        for pair in self.pairs:
            labels = [getattr(pair, key) for key in LABEL_KEYS]
            doubted = labels if "safe" in labels else []  # else as it was before there were labels
            about = [pair.id, pair.concept, pair.split, *pair.content(self.hashed), *doubted]
            digest.update(json.dumps(about + ([{"group": pair.group}] if pair.group else [])).encode())
        return digest.hexdigest()


def image_paths(pairs: Sequence[CalibrationPair]) -> list[Path]:
    """Every picture of the pairs, in order."""
    return [path for p in pairs for path in (p.safe_image, p.unsafe_image) if path is not None]
