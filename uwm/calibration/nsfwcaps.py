"""NSFWCaps: one file of captions with the address or file of each safe picture; nothing is ever fetched.

Yousaf et al., "SafeR-CLIP: Mitigating NSFW Content in Vision-Language Models While Preserving Pre-Trained Knowledge",
arXiv 2511.16743, which hands out image_coco_url, caption, nsfw_caption and chosen_category.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from ..errors import BadInput
from .pairs import CalibrationPair
from .roots import ImageRoots, demand_some, generated, images_of
from .strict import ImageFolder, check_text, parse_json, read_objects

NAMES = "NSFWCaps*"  # of a file in a folder
SUFFIXES = (".json", ".jsonl", ".csv")
COLUMNS = {  # field of a pair -> what files call it; the first are the published names
    "safe_text": ("caption", "safe_caption"),
    "unsafe_text": ("nsfw_caption", "unsafe_caption"),
    "concept": ("chosen_category", "category"),
    "safe_image": ("image_coco_url", "image_url", "image", "safe_image"),
    "unsafe_image": ("nsfw_image", "unsafe_image"),
    "id": ("id",),
}
NEEDED = ("safe_text", "unsafe_text")


def read_nsfwcaps(file: Path, roots: ImageRoots | None) -> list[CalibrationPair]:
    """The pairs of a file, with the item's number from 0 as id where it has no column ``id``.

    Args:
        file: JSON (a list of objects), JSON lines or CSV with a heading; for the columns see `COLUMNS`.
        roots: The safe root holds the pictures under the names in the file, of a URL under its last part; the unsafe
            root those under the names in the file, or ``<id>/0.jpg``, ``<id>.jpg``, or as the safe picture is called.
            None reads captions only.

    Returns:
        One pair an item; a pair whose pictures are not both there keeps its captions and says which is missing.

    Raises:
        BadInput: Malformed, with file and item; or no picture of a side is there.
        Refused: A picture's name leads out of its root.
    """
    pairs: dict[str, CalibrationPair] = {}
    folders = None if roots is None else (ImageFolder(roots.safe), ImageFolder(roots.unsafe))
    expected: tuple[str, str] | None = None
    for position, (where, row) in enumerate(_rows(file)):
        fields = _fields(row, where)
        name = fields.get("id") or str(position)
        if name in pairs:
            raise BadInput(f"{where}: id {name!r} was already used")
        found = {} if folders is None else _images(fields, name, *folders, where)
        expected = expected or (_file_name(fields.get("safe_image", "")) or "…", f"{name}/0.jpg")
        concept = fields.get("concept", "").strip()
        pairs[name] = CalibrationPair(name, concept, fields["safe_text"], fields["unsafe_text"], **found)
    if roots is not None and expected is not None:
        demand_some(list(pairs.values()), roots, expected)
    return list(pairs.values())


def _rows(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where each item stands, and the item."""
    if file.suffix == ".csv":
        yield from _csv_rows(file.read_bytes(), file)
    elif file.suffix == ".jsonl":
        yield from ((f"{file}:{number}", row) for number, row in read_objects(file))
    else:
        rows = parse_json(file.read_bytes(), str(file))
        if not isinstance(rows, list):
            raise BadInput(f"{file}: expected a JSON list of items, found {type(rows).__name__}")
        for position, row in enumerate(rows):
            if not isinstance(row, dict):
                raise BadInput(f"{file}: item {position}: expected a JSON object, found {type(row).__name__}")
            yield f"{file}: item {position}", row


def _csv_rows(raw: bytes, file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        reader = csv.DictReader(io.StringIO(raw.decode("utf-8-sig"), newline=""), strict=True)
        for row in reader:
            if None in row or None in row.values():
                width = len(reader.fieldnames or ())
                raise BadInput(f"{file}:{reader.line_num}: not as many cells as the heading's {width}")
            yield f"{file}:{reader.line_num}", row
    except UnicodeDecodeError as error:
        raise BadInput(f"{file}: not UTF-8 at byte {error.start}") from None
    except csv.Error as error:
        raise BadInput(f"{file}: not valid CSV ({error})") from None


def _fields(row: Mapping[str, Any], where: str) -> dict[str, str]:
    """The item by the fields of a pair; numbers may stand as ids."""
    fields: dict[str, str] = {}
    for field, names in COLUMNS.items():
        name = next((name for name in names if row.get(name) is not None), None)
        if name is not None:
            value = row[name]
            number = field == "id" and isinstance(value, int) and not isinstance(value, bool)
            fields[field] = str(value) if number else check_text(value, name, where)
    for field in NEEDED:
        if field not in fields:
            raise BadInput(f"{where}: no {' or '.join(COLUMNS[field])}; found {', '.join(map(str, row)) or 'nothing'}")
    return fields


def _images(
    fields: Mapping[str, str], name: str, safe_folder: ImageFolder, unsafe_folder: ImageFolder, where: str
) -> dict[str, Any]:
    safe_name = _file_name(fields.get("safe_image", ""))
    safe = safe_folder.image_if_there(safe_name, where)
    unsafe = unsafe_folder.image_if_there(_file_name(fields.get("unsafe_image", "")), where)
    for stem in (name, PurePosixPath(safe_name).stem):
        plain = stem and PurePosixPath(stem).name == stem and "\0" not in stem
        unsafe = unsafe or (generated(unsafe_folder.root, stem) if plain else None)
    return images_of(safe, unsafe)


def _file_name(value: str) -> str:
    """A file's name as it stands, or the last part of a URL; empty where there is none."""
    try:
        return PurePosixPath(unquote(urlsplit(value).path)).name if "://" in value else value
    except ValueError:  # not a URL after all
        return ""
