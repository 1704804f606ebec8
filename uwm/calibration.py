"""Calibration sets: pairs of safe and unsafe captions and pictures; read, checked, split and sub-sampled."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .checkpoint.writer import file_sha256
from .errors import BadInput, Refused
from .images import bad_images

TEXT_KEYS = ("safe_text", "unsafe_text")
IMAGE_KEYS = ("safe_image", "unsafe_image")
KEYS = ("id", "concept", *TEXT_KEYS, *IMAGE_KEYS, "split")
MAX_LINE = 1 << 20  # bytes
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class CalibrationPair:
    """One quadruple of method.md: safe and unsafe text, safe and unsafe picture; either modality may be missing."""

    id: str
    concept: str = ""
    safe_text: str | None = None
    unsafe_text: str | None = None
    safe_image: Path | None = None
    unsafe_image: Path | None = None
    split: str = ""

    @property
    def has_text(self) -> bool:
        """Both captions are there."""
        return self.safe_text is not None and self.unsafe_text is not None

    @property
    def has_image(self) -> bool:
        """Both pictures are there."""
        return self.safe_image is not None and self.unsafe_image is not None

    def content(self) -> tuple[str | None, ...]:
        """Both captions and the sha256 of both pictures: equal for equal pairs, wherever they are."""
        hashes = (None if path is None else file_sha256(path) for path in (self.safe_image, self.unsafe_image))
        return (self.safe_text, self.unsafe_text, *hashes)


@dataclass(frozen=True)
class CalibrationSet:
    """An ordered set of pairs and what was skipped while it was read."""

    pairs: tuple[CalibrationPair, ...]
    root: Path
    skipped: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pairs)

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

    def holdout(self, share: float, seed: int = 0) -> tuple[CalibrationSet, CalibrationSet]:
        """Two disjoint sets: for calibration, and a share (at least one pair) held out for measuring."""
        if not 0 < share < 1:
            raise BadInput(f"--holdout {share}: expected a share between 0 and 1")
        if len(self) < 2:
            raise BadInput(f"{self.root}: {len(self)} pair; at least 2 are needed to hold one out (or pass --eval)")
        size = min(len(self) - 1, max(1, round(share * len(self))))
        out = set(random.Random(seed).sample(range(len(self)), size))
        keep = tuple(p for i, p in enumerate(self.pairs) if i not in out)
        held = tuple(p for i, p in enumerate(self.pairs) if i in out)
        return replace(self, pairs=keep), replace(self, pairs=held)

    def fingerprint(self) -> str:
        """sha256 over the captions, tags and picture bytes of all pairs in order."""
        digest = hashlib.sha256()
        for pair in self.pairs:
            digest.update(json.dumps([pair.id, pair.concept, pair.split, *pair.content()]).encode())
        return digest.hexdigest()


def read_calibration(path: str | Path, *, split: str | None = None, limit: int | None = None) -> CalibrationSet:
    """Read a calibration set.

    Args:
        path: A folder with ``pairs.jsonl`` (the native form), or with ``safe/`` and ``unsafe/`` paired by file stem.
        split: Only the pairs of this split.
        limit: At most this many pairs.

    Raises:
        BadInput: Missing, empty or malformed, with file and line.
        Refused: A picture's path leaves the folder.
    """
    root = Path(path)
    if not root.is_dir():
        raise BadInput(f"{root}: no such folder; a calibration set is a folder with pairs.jsonl or safe/ and unsafe/")
    if (root / "pairs.jsonl").is_file():
        pairs = _read_native(root)
    elif (root / "safe").is_dir() or (root / "unsafe").is_dir():
        pairs = _read_folders(root)
    else:
        raise BadInput(f"{root}: neither pairs.jsonl nor the folders safe/ and unsafe/ are in it")
    if not pairs:
        raise BadInput(f"{root}: the set is empty")
    kept = tuple(p for p in pairs if not _empty_caption(p))
    result = CalibrationSet(kept, root, {"empty_caption": len(pairs) - len(kept)})
    if not kept:
        raise BadInput(f"{root}: every pair has an empty caption")
    return (result.split(split) if split else result).limit(limit)


def _empty_caption(pair: CalibrationPair) -> bool:
    return any(text is not None and not text.strip() for text in (pair.safe_text, pair.unsafe_text))


# ---------------------------------------------------------------- the native form


def _read_native(root: Path) -> list[CalibrationPair]:
    file = root / "pairs.jsonl"
    pairs: list[CalibrationPair] = []
    lines: dict[str, int] = {}
    content = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    for number, raw in enumerate(content.split(b"\n"), 1):
        where = f"{file}:{number}"
        if not raw.strip():
            continue
        pair = _pair_of(_parse_line(raw, where), root, where)
        if pair.id in lines:
            raise BadInput(f"{where}: id {pair.id!r} was already used in line {lines[pair.id]}")
        lines[pair.id] = number
        pairs.append(pair)
    return pairs


def _parse_line(raw: bytes, where: str) -> dict[str, Any]:
    def unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [key for key, n in Counter(key for key, _ in items).items() if n > 1]
        if twice:
            raise BadInput(f"{where}: key {twice[0]!r} occurs twice")
        return dict(items)

    if len(raw) > MAX_LINE:
        raise BadInput(f"{where}: a line of {len(raw)} bytes; the limit is {MAX_LINE}")
    try:
        row = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        raise BadInput(f"{where}: not UTF-8 at byte {error.start} of the line") from None
    except json.JSONDecodeError as error:
        raise BadInput(f"{where}:{error.colno}: not valid JSON ({error.msg})") from None
    except (RecursionError, ValueError):
        raise BadInput(f"{where}: nested too deep, or a number far too long") from None
    if not isinstance(row, dict):
        raise BadInput(f"{where}: expected a JSON object, found {type(row).__name__}")
    return row


def _pair_of(row: dict[str, Any], root: Path, where: str) -> CalibrationPair:
    unknown = [key for key in row if key not in KEYS]
    if unknown:
        raise BadInput(f"{where}: unknown key {_short(unknown[0])}; expected {', '.join(KEYS)}")
    if row.get("id") is None:
        raise BadInput(f"{where}: the key 'id' is missing")
    for key, value in row.items():
        if value is not None and not isinstance(value, str):
            raise BadInput(f"{where}: {key!r} is {_short(value)}, expected a string")
        if value and any(0xD800 <= ord(c) <= 0xDFFF for c in value):
            raise BadInput(f"{where}: {key!r} holds half of a surrogate pair")
    for pair in (TEXT_KEYS, IMAGE_KEYS):
        given = [key for key in pair if row.get(key) is not None]
        if len(given) == 1:
            raise BadInput(f"{where}: has {given[0]!r} and no {next(k for k in pair if k != given[0])!r}")
    if all(row.get(key) is None for key in (*TEXT_KEYS, *IMAGE_KEYS)):
        raise BadInput(f"{where}: has neither captions nor pictures; expected {', '.join(KEYS[2:6])}")
    fields: dict[str, Any] = {key: row[key] for key in KEYS if row.get(key) is not None}
    fields |= {key: _inside(root, row[key], where) for key in IMAGE_KEYS if key in fields}
    return CalibrationPair(**fields)


def _short(value: Any) -> str:
    """A value as a message can hold it."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _inside(root: Path, name: str, where: str) -> Path:
    """The picture's path, shown to lie in the set's folder and to be a file."""
    try:
        return _contained(root, name, where)
    except (OSError, RuntimeError) as error:  # a name too long, a loop of links
        raise BadInput(f"{where}: picture {_short(name)} cannot be read ({_short(str(error))})") from None


def _contained(root: Path, name: str, where: str) -> Path:
    if "://" in name:
        raise Refused(f"{where}: {name!r} is a URL; pictures are read from the set's folder only")
    path = root / name
    if "\0" in name or not path.resolve().is_relative_to(root.resolve()):
        raise Refused(f"{where}: picture {name!r} lies outside of the set's folder")
    if not path.is_file():
        raise BadInput(f"{where}: picture {name!r} does not exist")
    return path


# ---------------------------------------------------------------- two folders, paired by file stem


def _read_folders(root: Path) -> list[CalibrationPair]:
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
    for path in sorted(folder.glob("*")):
        kind = "text" if path.suffix == ".txt" else "image" if path.suffix.lower() in IMAGE_SUFFIXES else None
        if kind is None:
            continue
        _inside(folder.parent, f"{folder.name}/{path.name}", str(folder))
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


# ---------------------------------------------------------------- what is odd about a set


def check(calibration: CalibrationSet) -> dict[str, Any]:
    """Counts by concept and split, and everything odd: identical or duplicate pairs, leakage between splits.

    Returns:
        A plain dictionary for `uwm calib-check`; the lists under ``warnings`` are empty for a clean set.
    """
    pairs = calibration.pairs
    texts = Counter((p.safe_text, p.unsafe_text) for p in pairs if p.has_text)
    seen: dict[tuple, set[str]] = {}
    contents = [pair.content() for pair in pairs]
    for pair, content in zip(pairs, contents, strict=True):
        for part in (content[:2], content[2:]):
            if part != (None, None):
                seen.setdefault(part, set()).add(pair.split)
    warnings = {
        "identical_texts": [p.id for p in pairs if p.has_text and p.safe_text == p.unsafe_text],
        "identical_images": [p.id for p, c in zip(pairs, contents, strict=True) if p.has_image and c[2] == c[3]],
        "duplicate_captions": [f"{a} | {b}" for (a, b), n in texts.items() if n > 1],
        "leakage_between_splits": [f"{a} | {b}" for (a, b), splits in seen.items() if len(splits) > 1],
        "bad_images": bad_images(image_paths(pairs)),
    }
    return {
        "pairs": len(pairs),
        "with_text": sum(p.has_text for p in pairs),
        "with_image": sum(p.has_image for p in pairs),
        "skipped": calibration.skipped,
        "splits": _counts(p.split for p in pairs),
        "concepts": _counts(p.concept for p in pairs),
        "warnings": warnings,
    }


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(value or "(none)" for value in values).items()))


def image_paths(pairs: Sequence[CalibrationPair]) -> list[Path]:
    """Every picture of the pairs, in order."""
    return [path for p in pairs for path in (p.safe_image, p.unsafe_image) if path is not None]
