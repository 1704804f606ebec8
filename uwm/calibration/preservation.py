"""Safe captions and images without partners, which an edit shall leave as they are."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import BadInput
from .native import FILE
from .strict import check_text, inside, parse_object

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class Preservation:
    """Safe captions and images, each by itself.

    Attributes:
        captions: Not empty ones.
        images: Paths.
    """

    captions: tuple[str, ...] = field(default=(), repr=False)
    images: tuple[Path, ...] = field(default=(), repr=False)

    def fingerprint(self) -> str:
        """sha256 over the captions and the images' bytes, in order."""
        digest = hashlib.sha256(json.dumps(self.captions).encode())
        for path in self.images:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()


def read_preservation(path: str | Path) -> Preservation:
    """Read a preservation set.

    Args:
        path: A text file with a caption a line; a folder with ``pairs.jsonl``, of which the safe sides are read (other
            keys may be missing); or a folder of images, in any sub-folders, with captions in ``.txt`` beside them.

    Raises:
        BadInput: Nothing is there, or a line cannot be read.
    """
    path = Path(path)
    if path.is_file():
        found = Preservation(captions=_captions(path))
    elif (path / FILE).is_file():
        found = _native(path)
    elif path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        images = tuple(p for p in files if p.suffix.lower() in IMAGES)
        found = Preservation(tuple(c for p in files if p.suffix == ".txt" for c in _captions(p)), images)
    else:
        raise BadInput(f"--preserve {path}: no such file or folder")
    if not (found.captions or found.images):
        raise BadInput(f"--preserve {path}: holds neither captions nor images")
    return found


def _captions(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 at byte {error.start}") from None
    return tuple(line.strip() for line in lines if line.strip())


def _native(folder: Path) -> Preservation:
    """The safe sides of a native set's lines."""
    captions, images = [], []
    content = (folder / FILE).read_bytes().removeprefix(b"\xef\xbb\xbf")
    for number, raw in enumerate(content.split(b"\n"), 1):
        where = f"{folder / FILE}:{number}"
        row = parse_object(raw, where) if raw.strip() else {}
        if row.get("safe_text") is not None and (caption := check_text(row["safe_text"], "safe_text", where).strip()):
            captions.append(caption)
        if row.get("safe_image") is not None:
            images.append(inside(folder, check_text(row["safe_image"], "safe_image", where), where))
    return Preservation(tuple(captions), tuple(images))
