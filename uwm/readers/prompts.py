"""Prompts to draw: I2P's table, COCO's captions, files of one's own, and the captions of a calibration set."""

from __future__ import annotations

import csv
import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..calibration import read_calibration
from ..calibration.native import FILE
from ..calibration.strict import check_text, parse_json, read_objects, short
from ..errors import BadInput
from .results import SIDES

TEXT = ("prompt", "caption", "text")  # columns, of which the first that is there counts
CONCEPTS = ("categories", "concept")
SEED = ("sd_seed", "seed")
GUIDANCE = ("sd_guidance_scale", "guidance")
WIDTH, HEIGHT = ("sd_image_width", "width"), ("sd_image_height", "height")
LARGEST_SEED = 2**63 - 1  # that torch takes


@dataclass(frozen=True)
class Prompt:
    """What is drawn once.

    Attributes:
        text: The prompt.
        side: ``safe`` or ``unsafe``.
        seed: Of the noise that the drawing begins with.
        concepts: What it is about.
        guidance, width, height: As its file asks for; None for the pipeline's own.
    """

    text: str
    side: str
    seed: int
    concepts: tuple[str, ...] = ()
    guidance: float | None = None
    width: int | None = None
    height: int | None = None

    @property
    def name(self) -> str:
        """The name of its image: by the hash of the prompt, with what it asks for, and the seed."""
        own = json.dumps([self.text, self.guidance, self.width, self.height])
        return f"{hashlib.sha256(own.encode()).hexdigest()[:16]}-{self.seed}.png"


def read_prompts(
    path: Path, side: str, *, split: str | None = None, limit: int | None = None, seed: int = 0, each: int = 1
) -> list[Prompt]:
    """Prompts from a file or a calibration set.

    Args:
        path: JSON lines (``.jsonl``) or CSV with a column ``prompt``, ``caption`` or ``text`` (I2P's columns as they
            come); COCO's captions (``.json`` with ``annotations``); a text with a prompt a line; or a calibration set
            with captions, of which both sides are read.
        side: Of prompts that do not say theirs in a column ``side``.
        split: Of the calibration set; refused for a file of prompts.
        limit: At most so many prompts of each side, drawn with the seed.
        seed: Also decides the seeds of prompts that have none of their own.
        each: How many images of each prompt, from seeds that follow one another.

    Raises:
        BadInput: Missing, empty or malformed, with file and line.
    """
    if split is not None and not is_set(path):
        raise BadInput(f"--split {split}: {path} is no calibration set; leave it out")
    rows = [*_captions_of(path, split)] if is_set(path) else [*_rows(path, side)]
    if not rows:
        raise BadInput(f"{path}: no prompt in it")
    kept = [prompt for name in SIDES for prompt in _drawn([row for row in rows if row.side == name], limit, seed)]
    own = [replace(row, seed=_seed_of(row.text, seed) if row.seed < 0 else row.seed) for row in kept]
    return [replace(row, seed=row.seed + number) for row in own for number in range(each)]


def is_set(path: Path) -> bool:
    """Whether prompts are the captions of a calibration set, which may have splits."""
    return path.is_dir() or path.name == FILE


def _drawn(rows: Sequence[Prompt], limit: int | None, seed: int) -> list[Prompt]:
    if limit is None or limit >= len(rows):
        return [*rows]
    return [rows[n] for n in sorted(random.Random(seed).sample(range(len(rows)), limit))]


def _seed_of(text: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}\n{text}".encode()).digest()[:4], "big")


def _captions_of(path: Path, split: str | None) -> Iterator[Prompt]:
    for pair in read_calibration(path, split=split).pairs:
        concepts = (pair.concept,) if pair.concept else ()
        for side, text in zip(SIDES, (pair.safe_text, pair.unsafe_text), strict=True):
            if text is not None:
                yield Prompt(text, side, -1, concepts)


def _rows(path: Path, side: str) -> Iterator[Prompt]:
    kinds = {".jsonl": read_objects, ".csv": _csv_rows, ".json": _coco_rows, ".txt": _text_rows}
    if path.suffix.lower() not in kinds:
        raise BadInput(
            f"{path}: expected prompts as JSON lines (.jsonl), .csv, .txt, COCO's captions (.json) or a calibration set"
        )
    try:
        for number, row in kinds[path.suffix.lower()](path):
            yield _prompt(row, side, f"{path}:{number}")
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None


def _csv_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            table = csv.DictReader(stream, strict=True)
            for row in table:
                yield table.line_num, {key: value for key, value in row.items() if key and value not in (None, "")}
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 at byte {error.start}") from None
    except csv.Error as error:
        raise BadInput(f"{path}: not valid CSV ({error})") from None


def _text_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    from ..knowledge.pictures import text_lines

    yield from ((number, {"prompt": line}) for number, line in enumerate(text_lines(path), 1))


def _coco_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    found = parse_json(path.read_bytes(), str(path))
    rows = found.get("annotations") if isinstance(found, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BadInput(f"{path}: expected COCO's captions, an object with a list of 'annotations'")
    yield from ((number, {"caption": row.get("caption")}) for number, row in enumerate(rows, 1))


def _prompt(row: Mapping[str, Any], side: str, where: str) -> Prompt:
    text = _first(row, TEXT)
    if text is None:
        raise BadInput(f"{where}: no {', '.join(TEXT[:2])} or {TEXT[2]}; found {short([*row])}")
    check_text(text, "prompt", where)
    own = row.get("side") or side
    if own not in SIDES:
        raise BadInput(f"{where}: side is {short(own)}, expected safe or unsafe")
    return Prompt(
        text=text.strip(),
        side=own,
        seed=_number(row, SEED, int, where, -1),
        concepts=_concepts(row, where),
        guidance=_number(row, GUIDANCE, float, where, None),
        width=_number(row, WIDTH, int, where, None),
        height=_number(row, HEIGHT, int, where, None),
    )


def _concepts(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The names of a list, or of a text with commas between. Raises BadInput for what is neither."""
    value = _first(row, CONCEPTS)
    names = value.split(",") if isinstance(value, str) else [] if value is None else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        name = next(name for name in CONCEPTS if row.get(name) is not None)
        raise BadInput(f"{where}: {name} is {short(value)}, expected a text with commas between, or a list of texts")
    return tuple(name.strip() for name in names if name.strip())


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _number(row: Mapping[str, Any], names: Sequence[str], kind: Any, where: str, otherwise: Any) -> Any:
    """The number of a column, `otherwise` where there is none. Raises BadInput for what is none or below 0."""
    value = _first(row, names)
    if value is None:
        return otherwise
    try:
        number = kind(value) if kind is float else int(str(value).removesuffix(".0"))
    except (TypeError, ValueError, OverflowError):
        number = -1
    if not 0 <= number <= LARGEST_SEED:
        name = next(name for name in names if row.get(name) is not None)
        raise BadInput(
            f"{where}: {name} is {short(value)}, expected a {'' if kind is float else 'whole '}number from 0"
        )
    return number
