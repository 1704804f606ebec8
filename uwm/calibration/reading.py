"""A calibration set in any of the forms that uwm reads."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import BadInput
from .folders import read_folders
from .native import FILE, read_native
from .nsfwcaps import NAMES, SUFFIXES, read_nsfwcaps
from .pairs import IMAGE_SUFFIXES, CalibrationPair, CalibrationSet
from .roots import find_roots
from .visu import FILES, ID, read_visu


def read_calibration(
    path: str | Path,
    *,
    split: str | None = None,
    limit: int | None = None,
    safe_images: str | Path | None = None,
    unsafe_images: str | Path | None = None,
) -> CalibrationSet:
    """Read a calibration set.

    Args:
        path: A folder with ``pairs.jsonl`` (the native form), with ``safe/`` and ``unsafe/`` paired by file stem, or
            with ``ViSU-Text_*.json``, or with one file of NSFWCaps, named ``NSFWCaps*``; or a file of either.
        split: Only the pairs of this split.
        limit: At most this many pairs.
        safe_images, unsafe_images: Where the pictures of ViSU-Text and NSFWCaps lie  [default: the folders
            ``safe_images`` and ``unsafe_images`` beside the captions; without them, captions only].

    Raises:
        BadInput: Missing, empty or malformed, with file and line.
        Refused: A picture's path leaves the folder.
    """
    root = Path(path)
    pairs = _read(root, safe_images, unsafe_images)
    if not pairs:
        raise BadInput(f"{root}: the set is empty")
    kept = tuple(p for p in pairs if not _empty_caption(p))
    result = CalibrationSet(kept, root, {"empty_caption": len(pairs) - len(kept)})
    if not kept:
        raise BadInput(f"{root}: every pair has an empty caption")
    return (result.split(split) if split else result).limit(limit)


def comes_without_pictures(path: str | Path) -> bool:
    """Whether a set is files of captions only, whose pictures lie elsewhere."""
    return bool(_caption_files(Path(path)))


def is_plain_folder(
    path: str | Path,
    *,
    split: str | None = None,
    safe_images: str | Path | None = None,
    unsafe_images: str | Path | None = None,
    flag: str = "--images",
) -> bool:
    """Whether what a flag names is a folder of images and no calibration set, which has these settings.

    Raises:
        BadInput: Nothing is there, or a setting of sets is given for a folder of images.
    """
    root = Path(path)
    if not root.exists():
        raise BadInput(f"{flag} {root}: no such folder; expected a folder of images, or a calibration set")
    both = all((root / side).is_dir() for side in ("safe", "unsafe"))
    if root.is_file() or (root / FILE).is_file() or comes_without_pictures(root) or both:
        return False
    for setting, given in (("split", split), ("safe-images", safe_images), ("unsafe-images", unsafe_images)):
        if given is not None:
            raise BadInput(f"--{setting} {given}: {path} is no calibration set; leave it out")
    return True


def loose_images(folder: Path) -> list[Path]:
    """The images that lie in a folder by themselves, not in its sub-folders, sorted."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _caption_files(path: Path) -> list[Path]:
    if path.is_file():
        return [] if path.name == FILE else [path]
    if (path / FILE).is_file():
        return []
    return sorted(path.glob(FILES)) or _nsfwcaps_of(path)


def _nsfwcaps_of(folder: Path) -> list[Path]:
    """The one file of NSFWCaps in a folder, or none. Raises BadInput where there are several."""
    found = sorted(file for file in folder.glob(NAMES) if file.suffix in SUFFIXES and file.is_file())
    if len(found) > 1:
        raise BadInput(
            f"{folder}: {' and '.join(file.name for file in found)} are both NSFWCaps; name one of the files"
        )
    return found


def _read(path: Path, safe_images: str | Path | None, unsafe_images: str | Path | None) -> list[CalibrationPair]:
    if files := _caption_files(path):
        roots = find_roots(files[0].parent, safe_images, unsafe_images)
        return read_visu(files, roots) if _is_visu(files[0]) else read_nsfwcaps(files[0], roots)
    if safe_images is not None or unsafe_images is not None:
        raise BadInput(f"{path}: --safe-images and --unsafe-images are for ViSU-Text and NSFWCaps; this is neither")
    folder = path.parent if path.is_file() else path
    if (folder / FILE).is_file():
        return read_native(folder)
    if (folder / "safe").is_dir() or (folder / "unsafe").is_dir():
        return read_folders(folder)
    if folder.is_dir():
        raise BadInput(f"{path}: neither {FILE} nor the folders safe/ and unsafe/ are in it, nor {FILES} or {NAMES}")
    raise BadInput(
        f"{path}: no such folder; a calibration set is a folder with {FILE} or safe/ and unsafe/, or a file of "
        "ViSU-Text or NSFWCaps"
    )


def _is_visu(file: Path) -> bool:
    """Whether a file is ViSU-Text, by its name or by the first item's keys; NSFWCaps otherwise."""
    if file.suffix not in SUFFIXES:
        raise BadInput(f"{file}: expected a folder, or ViSU-Text (.json) or NSFWCaps ({', '.join(SUFFIXES)})")
    with file.open("rb") as opened:
        return file.suffix == ".json" and (file.match(FILES) or json.dumps(ID).encode() in opened.read(4096))


def _empty_caption(pair: CalibrationPair) -> bool:
    return any(text is not None and not text.strip() for text in (pair.safe_text, pair.unsafe_text))
