"""ViSU-Text: captions as the authors hand them out, with COCO's pictures and generated ones where there are any.

Poppi et al., "Safe-CLIP: Removing NSFW Concepts from Vision-and-Language Models", arXiv 2311.16254, section 3.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import BadInput
from .pairs import CalibrationPair
from .roots import ImageRoots, demand_some, generated, images_of
from .strict import check_text, parse_json, short

FILES = "ViSU-Text_*.json"
ID = "incremental_id"
TAGS = {"bodily bluids": "bodily fluids"}  # misspelt in the published files


def read_visu(files: Iterable[Path], roots: ImageRoots | None) -> list[CalibrationPair]:
    """The pairs of some ViSU-Text files, with ids such as ``train/17``.

    Args:
        files: ``ViSU-Text_train.json`` and so on: lists of {incremental_id, safe, nsfw, tag, coco_id}. The name says
            the split. Other keys are ignored.
        roots: The safe root holds COCO's ``%012d.jpg`` (or ``COCO_<split>_%012d.jpg``) itself or in sub-folders; the
            unsafe root ``<split>/<incremental_id>/0.jpg`` or ``<split>/<incremental_id>.jpg``, where a single file's
            split folder may be left out. None reads captions only.

    Returns:
        One pair an item; a pair whose pictures are not both there keeps its captions and says which is missing.

    Raises:
        BadInput: Malformed, with file and item; or no picture of a side is there.
    """
    files = list(files)
    by_number = {} if roots is None else _coco(roots.safe)
    pairs: list[CalibrationPair] = []
    for file in files:
        split = split_of(file)
        folder = None if roots is None else _folder(roots.unsafe, split, alone=len(files) == 1)
        pairs += _read(file, split, None if folder is None else (by_number, folder))
    if roots is not None:
        demand_some(pairs, roots, ("train2017/000000000139.jpg", f"{split_of(files[0]) or 'train'}/0/0.jpg"))
    return pairs


def split_of(file: Path) -> str:
    """``train`` of ``ViSU-Text_train.json``; empty for other names."""
    found = re.fullmatch(r"ViSU-Text_(\w+)", file.stem)
    return found[1] if found else ""


def _coco(root: Path) -> dict[int, Path]:
    """COCO's pictures by their number, wherever under the root: COCO's splits share no number."""
    found: dict[int, Path] = {}
    for path in [*root.glob("*.jpg"), *root.glob("*/*.jpg")]:
        if number := re.fullmatch(r"(?:COCO_\w+_)?(\d{12})", path.stem):
            found[int(number[1])] = min(path, found.get(int(number[1]), path))
    return found


def _folder(root: Path, split: str, *, alone: bool) -> Path:
    own = root / split
    return own if split and (own.is_dir() or not alone) else root


def _read(file: Path, split: str, images: tuple[Mapping[int, Path], Path] | None) -> list[CalibrationPair]:
    rows = parse_json(file.read_bytes(), str(file))
    if not isinstance(rows, list):
        raise BadInput(f"{file}: expected a JSON list of items, found {type(rows).__name__}")
    pairs: dict[str, CalibrationPair] = {}
    for position, row in enumerate(rows):
        pair = _pair(row, f"{file}: item {position}", split, images)
        if pair.id in pairs:
            raise BadInput(f"{file}: item {position}: {ID} {row[ID]} was already used")
        pairs[pair.id] = pair
    return list(pairs.values())


def _pair(row: Any, where: str, split: str, images: tuple[Mapping[int, Path], Path] | None) -> CalibrationPair:
    if not isinstance(row, dict):
        raise BadInput(f"{where}: expected a JSON object, found {type(row).__name__}")
    missing = [key for key in (ID, "safe", "nsfw", "tag", "coco_id") if key not in row]
    if missing:
        raise BadInput(f"{where}: the key {missing[0]!r} is missing; is this ViSU-Text?")
    for key in (ID, "coco_id"):
        if not isinstance(row[key], int) or isinstance(row[key], bool):
            raise BadInput(f"{where}: {key!r} is {short(row[key])}, expected a whole number")
    safe, unsafe, tag = (check_text(row[key], key, where) for key in ("safe", "nsfw", "tag"))
    name = f"{split}/{row[ID]}" if split else f"{row[ID]}"
    found: dict[str, Any] = {}
    if images is not None:
        by_number, folder = images
        found = images_of(by_number.get(row["coco_id"]), generated(folder, str(row[ID])))
    return CalibrationPair(name, TAGS.get(tag, tag), safe, unsafe, split=split, **found)
