"""Safe captions and images without partners, which an edit shall leave as they are."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import BadInput
from ..manifest import PreservationFacts
from .groups import CAPTION, IMAGE, ImageHashes, Item, same_caption
from .native import FILE
from .pairs import IMAGE_SUFFIXES
from .strict import ImageFolder, check_text, read_objects


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

    def items(self, hashed: ImageHashes) -> frozenset[Item]:
        """Its captions and images, as `CalibrationPair.items` has those of a pair."""
        captions = [(CAPTION, same_caption(caption)) for caption in self.captions]
        return frozenset(captions + [(IMAGE, hashed(path)) for path in self.images])

    def facts(self) -> PreservationFacts:
        """What uwm.json says of it."""
        return {"captions": len(self.captions), "images": len(self.images), "sha256": self.fingerprint()}


def read_preservation(path: str | Path) -> Preservation:
    """Read a preservation set.

    Args:
        path: A text file with a caption a line; a folder with ``pairs.jsonl``, of which the safe sides are read (other
            keys may be missing); or a folder of images, in any sub-folders, with captions in ``.txt`` beside them.

    Raises:
        BadInput: Nothing is there, or a line cannot be read.
        Refused: A file outside of the folder.
    """
    path = Path(path)
    if path.is_file():
        found = Preservation(captions=_captions(path))
    elif (path / FILE).is_file():
        found = _native(path)
    elif path.is_dir():
        found = _images(path)
    else:
        raise BadInput(f"--preserve {path}: no such file or folder")
    if not (found.captions or found.images):
        raise BadInput(f"--preserve {path}: holds neither captions nor images")
    return found


def _captions(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 at byte {error.start}") from None
    return tuple(line.strip() for line in lines if line.strip())


def _images(folder: Path) -> Preservation:
    """Images in any sub-folders, and the captions of text files beside them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    texts = [path for path in files if path.suffix == ".txt"]
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    root = ImageFolder(folder)
    for path in (*texts, *images):
        root.image(str(path.relative_to(folder)), str(folder))
    return Preservation(tuple(caption for path in texts for caption in _captions(path)), tuple(images))


def _native(folder: Path) -> Preservation:
    """The safe sides of a native set's lines."""
    root = ImageFolder(folder)
    captions, images = [], []
    for number, row in read_objects(folder / FILE):
        where = f"{folder / FILE}:{number}"
        if row.get("safe_text") is not None and (caption := check_text(row["safe_text"], "safe_text", where).strip()):
            captions.append(caption)
        if row.get("safe_image") is not None:
            images.append(root.image(check_text(row["safe_image"], "safe_image", where), where))
    return Preservation(tuple(captions), tuple(images))
