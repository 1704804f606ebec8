"""A folder with safe/ and unsafe/, paired by file stem, captions in .txt files beside the pictures."""

from __future__ import annotations

from pathlib import Path

from ..errors import BadInput
from .pairs import IMAGE_SUFFIXES, CalibrationPair
from .strict import ImageFolder


def read_folders(root: Path) -> list[CalibrationPair]:
    """The pairs of a folder. Raises BadInput when the sides do not match, Refused for a picture outside of it."""
    sides = [_stems(root / side) for side in ("safe", "unsafe")]
    if not sides[0] or not sides[1]:
        raise BadInput(f"{root}: safe/ holds {len(sides[0])} items and unsafe/ {len(sides[1])}; both are needed")
    odd = sorted(sides[0].keys() ^ sides[1].keys())
    if odd:
        raise BadInput(
            f"{root}: {len(odd)} file stems occur on one side only, such as {', '.join(odd[:5])}; "
            "safe/ and unsafe/ are paired by stem"
        )
    return [_stem_pair(stem, sides[0][stem], sides[1][stem], root) for stem in sorted(sides[0])]


def _stems(folder: Path) -> dict[str, dict[str, Path]]:
    """Stem -> its picture and caption files."""
    found: dict[str, dict[str, Path]] = {}
    root = ImageFolder(folder.parent)
    for path in sorted(folder.glob("*")):
        kind = "text" if path.suffix == ".txt" else "image" if path.suffix.lower() in IMAGE_SUFFIXES else None
        if kind is None:
            continue
        root.image(f"{folder.name}/{path.name}", str(folder))
        if kind in found.setdefault(path.stem, {}):
            raise BadInput(f"{folder}: {path.name} and {found[path.stem][kind].name} share the stem {path.stem!r}")
        found[path.stem][kind] = path
    return found


def _stem_pair(stem: str, safe: dict[str, Path], unsafe: dict[str, Path], root: Path) -> CalibrationPair:
    if safe.keys() != unsafe.keys():
        raise BadInput(f"{root}: {stem!r} has {', '.join(safe)} in safe/ and {', '.join(unsafe)} in unsafe/")
    texts = [_caption(side["text"]) if "text" in side else None for side in (safe, unsafe)]
    return CalibrationPair(stem, "", texts[0], texts[1], safe.get("image"), unsafe.get("image"))


def _caption(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 at byte {error.start}") from None
