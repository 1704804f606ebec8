"""The native form: a folder with pairs.jsonl, one pair a line, and pictures inside the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import BadInput
from .pairs import IMAGE_KEYS, LABEL_KEYS, LABELS, TEXT_KEYS, CalibrationPair
from .strict import ImageFolder, check_text, read_objects, short

FILE = "pairs.jsonl"
KEYS = ("id", "concept", *TEXT_KEYS, *IMAGE_KEYS, "split", "group", *LABEL_KEYS)


def read_native(root: Path) -> list[CalibrationPair]:
    """The pairs of a folder. Raises BadInput with file and line, Refused for a picture outside of the folder."""
    file, folder = root / FILE, ImageFolder(root)
    pairs: list[CalibrationPair] = []
    lines: dict[str, int] = {}
    for number, row in read_objects(file):
        where = f"{file}:{number}"
        pair = _pair_of(row, folder, where)
        if pair.id in lines:
            raise BadInput(f"{where}: id {pair.id!r} was already used in line {lines[pair.id]}")
        lines[pair.id] = number
        pairs.append(pair)
    return pairs


def _pair_of(row: dict[str, Any], folder: ImageFolder, where: str) -> CalibrationPair:
    unknown = [key for key in row if key not in KEYS]
    if unknown:
        raise BadInput(f"{where}: unknown key {short(unknown[0])}; expected {', '.join(KEYS)}")
    if row.get("id") is None:
        raise BadInput(f"{where}: the key 'id' is missing")
    for key, value in row.items():
        if value is not None:
            check_text(value, key, where)
    for pair in (TEXT_KEYS, IMAGE_KEYS):
        given = [key for key in pair if row.get(key) is not None]
        if len(given) == 1:
            raise BadInput(f"{where}: has {given[0]!r} and no {next(k for k in pair if k != given[0])!r}")
    if all(row.get(key) is None for key in (*TEXT_KEYS, *IMAGE_KEYS)):
        raise BadInput(f"{where}: has neither captions nor pictures; expected {', '.join(KEYS[2:6])}")
    _check_labels(row, where)
    fields: dict[str, Any] = {key: row[key] for key in KEYS if row.get(key) is not None}
    fields |= {key: folder.image(row[key], where) for key in IMAGE_KEYS if key in fields}
    return CalibrationPair(**fields)


def _check_labels(row: dict[str, Any], where: str) -> None:
    for key, of in LABEL_KEYS.items():
        label = row.get(key)
        if label is not None and row.get(of) is None:
            raise BadInput(f"{where}: has {key!r} and no {of!r}")
        if label is not None and label not in LABELS:
            raise BadInput(f"{where}: {key!r} is {short(label)}, expected 'safe' or 'unsafe'")
