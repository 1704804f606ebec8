"""What a query is compared with: the images or the captions of a set, or of a plain folder of images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..calibration import CalibrationSet, is_plain_folder, read_calibration
from ..calibration.pairs import IMAGE_SUFFIXES
from ..embedding import SIDES
from ..errors import BadInput
from ..images import bad_images

TEXT, IMAGE = "text", "image"


@dataclass(frozen=True)
class Candidate:
    """A caption or an image that a query may find.

    Attributes:
        content: The caption, or the image's file.
        side: ``safe`` or ``unsafe``, empty where the set does not say.
        caption: Of an image, where the set has one; a caption itself otherwise.
        name: Of an image, its path in the folder; empty for a caption.
    """

    content: str | Path
    side: str = ""
    caption: str = ""
    name: str = ""


@dataclass(frozen=True)
class Candidates:
    """Every different candidate once.

    Attributes:
        name: Of the set or the folder.
        kind: ``text`` or ``image``.
        items: At least one.
        warnings: What a user should know of them.
    """

    name: str
    kind: str
    items: tuple[Candidate, ...]
    warnings: tuple[str, ...] = ()


def read_candidates(
    images: str,
    kind: str,
    *,
    split: str | None = None,
    safe_images: str | None = None,
    unsafe_images: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    workers: int = 2,
) -> Candidates:
    """The different captions or images of a set or a folder; images that cannot be read are left out, and told.

    Args:
        images: A calibration set in any form, or a folder of images, which is searched with its folders.
        kind: ``text`` or ``image``. The captions of a folder of images are the names of its files.
        split, safe_images, unsafe_images: As in `uwm.read_calibration`, of a calibration set.
        limit, seed: At most this many pairs of a set, drawn with the seed; of a folder the first images.
        workers: Threads that read images.

    Raises:
        BadInput: There is nothing to search, or a setting of sets is given for a plain folder.
    """
    root = Path(images)
    of_set: dict[str, Any] = {"split": split, "safe_images": safe_images, "unsafe_images": unsafe_images}
    if not is_plain_folder(images, **of_set):
        pairs = read_calibration(root, **of_set).limit(limit, seed)
        found, warnings = [*_of_pairs(pairs, kind)], pairs.warnings()
        name = root.resolve().name + (f", {split}" if split else "")
    else:
        found, warnings, name = [*_of_folder(root, kind)][:limit], [], root.resolve().name
    if kind == IMAGE:
        found, unread = _readable(found, workers)
        warnings = [*warnings, *unread]
    if not found:
        raise BadInput(f"{images}: {_nothing(kind)}")
    return Candidates(name, kind, tuple(found), tuple(warnings))


def _nothing(kind: str) -> str:
    if kind == TEXT:
        return "no captions for an image to find; expected a set with captions, or a folder of images with names"
    return "no images to search; expected a folder of images, or give --safe-images and --unsafe-images with a set"


def _of_pairs(pairs: CalibrationSet, kind: str) -> Iterator[Candidate]:
    """Every different caption, or image by the bytes of its file, as it comes first."""
    known: set[str] = set()
    for pair in pairs.pairs:
        for side in SIDES:
            content, caption = getattr(pair, f"{side}_{kind}"), getattr(pair, f"{side}_text") or ""
            key = pairs.hashed(content) if isinstance(content, Path) else content
            if key is None or key in known:
                continue
            known.add(key)
            yield Candidate(content, side, caption, _named(content, pairs.root) if kind == IMAGE else "")


def _of_folder(root: Path, kind: str) -> Iterator[Candidate]:
    """The images below a folder, sorted; or the different names of their files as captions."""
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if kind == IMAGE:
        yield from (Candidate(path, name=_named(path, root)) for path in files)
        return
    names = dict.fromkeys(path.stem.replace("_", " ").replace("-", " ").strip() for path in files)
    yield from (Candidate(name, caption=name) for name in names if name)


def _named(path: Path, root: Path) -> str:
    folder = root if root.is_dir() else root.parent
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else path.name


def _readable(found: list[Candidate], workers: int) -> tuple[list[Candidate], list[str]]:
    """The candidates whose images can be read, and a line on the others."""
    bad = bad_images((Path(one.content) for one in found), workers)
    if not bad:
        return found, []
    kept = [one for one in found if not any(line.startswith(f"{one.content}: ") for line in bad)]
    more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
    return kept, [f"{len(bad)} images cannot be read and are left out: {'; '.join(bad[:3])}{more}"]
