"""Where the pictures of sets lie that come as captions only: a folder of safe pictures and one of unsafe ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInput
from .pairs import IMAGE_KEYS, CalibrationPair

FOLDERS = ("safe_images", "unsafe_images")  # beside the captions, where no flag says otherwise
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class ImageRoots:
    """The folders of the safe and of the unsafe pictures."""

    safe: Path
    unsafe: Path


def find_roots(base: Path, safe: str | Path | None, unsafe: str | Path | None) -> ImageRoots | None:
    """Both folders, from the flags or beside the captions; None where the set is to be read without pictures.

    Raises:
        BadInput: Only one of them is given, or one is no folder.
    """
    given = [Path(root) if root is not None else base / own for root, own in zip((safe, unsafe), FOLDERS, strict=True)]
    flags = ("--safe-images", "--unsafe-images")
    for flag, root, path in zip(flags, (safe, unsafe), given, strict=True):
        if root is not None and not path.is_dir():
            raise BadInput(f"{flag} {root}: no such folder")
    there = [path.is_dir() for path in given]
    if not any(there):
        return None
    if not all(there):
        lacking = there.index(False)
        raise BadInput(
            f"{given[1 - lacking]}: pictures of one side only; say where the others lie with {flags[lacking]}, "
            f"or put them into {base / FOLDERS[lacking]}"
        )
    return ImageRoots(*given)


def generated(folder: Path, name: str) -> Path | None:
    """A picture made for an item: ``<folder>/<name>/0.jpg``, or ``<folder>/<name>.jpg``; or None."""
    for suffix in SUFFIXES:
        for path in (folder / name / f"0{suffix}", folder / f"{name}{suffix}"):
            if path.is_file():
                return path
    return None


def images_of(safe: Path | None, unsafe: Path | None) -> dict[str, Any]:
    """The picture fields of a pair, where pictures were looked for."""
    missing = tuple(key for key, path in zip(IMAGE_KEYS, (safe, unsafe), strict=True) if path is None)
    return {"safe_image": safe, "unsafe_image": unsafe, "missing": missing}


def demand_some(pairs: Sequence[CalibrationPair], roots: ImageRoots, expected: tuple[str, str]) -> None:
    """Raise BadInput when not one picture of a side was found, which means a wrong folder.

    Args:
        pairs: All that were looked for.
        roots: Where.
        expected: What the first item's pictures would be called, safe and unsafe.
    """
    for key, root, name in zip(IMAGE_KEYS, (roots.safe, roots.unsafe), expected, strict=True):
        if pairs and all(key in pair.missing for pair in pairs):
            side = key.replace("_image", "")
            raise BadInput(f"{root}: not one of {len(pairs)} {side} pictures is there; expected names such as {name}")
