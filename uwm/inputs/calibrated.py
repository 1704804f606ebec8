"""What a model was calibrated on, as short hashes in uwm.json, and what pairs to measure on share with it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from ..calibration import CalibrationSet, Shared, shared
from ..calibration.groups import Item
from ..checkpoint.sources import EXPORTS
from ..errors import BadInput
from ..manifest import ItemFacts, Manifest, read_manifest
from ..outputs import MANIFEST

BYTES = 6  # of a hash; a million items and a million others have no equal hashes but for one chance in 280
MOST = 100_000  # hashes that uwm.json holds, 800 kB; of more items those with the least hashes, which is a random part


@dataclass(frozen=True)
class Calibrated:
    """What pairs share with those that calibrated a model.

    Attributes:
        column: The model's column, ``model`` or ``baseline``.
        found: How many pairs share captions and images, and how many of these.
        of: How many pairs were looked at.
        whole: Whether the model names all that it was calibrated on; else the counts are the least possible.
    """

    column: str
    found: Shared
    of: int
    whole: bool

    @property
    def words(self) -> str:
        """``12 of 400 pairs share captions or images with …``."""
        least = "" if self.whole else "at least "
        return (
            f"{least}{self.found.pairs} of {self.of} pairs share captions or images with the pairs that calibrated it "
            f"({self.found.captions} captions, {self.found.images} images), so figures may be too good"
        )


def item_facts(items: Iterable[Item], base: Path | None = None) -> ItemFacts:
    """Short hashes of the captions and images that a model learnt from, for uwm.json.

    Args:
        items: As `CalibrationPair.items` gives them, in any order and as often as they occur.
        base: The checkpoint that was edited or trained: what it learnt from before is kept.
    """
    written = None if base is None else _written(base)
    before = frozenset() if written is None else _hashes(*written) or frozenset()
    beyond = 0 if written is None or not before else written[1]["calibration"]["items"]["count"] - len(before)
    hashes = sorted(before | {_short(item) for item in items})
    kept = b"".join(hashes[:MOST])
    return {"count": len(hashes) + beyond, "hashes": base64.b64encode(kept).decode()}


def _short(item: Item) -> bytes:
    return blake2b("\0".join(item).encode("utf-8", "surrogatepass"), digest_size=BYTES).digest()


def calibrated_on(column: str, path: Path, pairs: CalibrationSet) -> Calibrated | None:
    """What pairs share with those that calibrated the model in a folder that uwm wrote; None where nothing is known.

    Args:
        column: What the model is called.
        path: The checkpoint: a folder, or a file in it.
        pairs: To measure on.

    Raises:
        BadInput: uwm.json is damaged.
    """
    written = _written(path)
    known = None if written is None else _hashes(*written)
    if written is None or known is None:
        return None
    manifest = written[1]
    items = pairs.items()
    seen = frozenset(item for own in items for item in own if _short(item) in known)
    whole = manifest["calibration"]["items"]["count"] == len(known)
    return Calibrated(column, shared(seen, items), len(pairs), whole)


def says_nothing(path: Path) -> bool:
    """Whether uwm wrote a checkpoint and its uwm.json does not tell which pairs calibrated it, as after `uwm apply`."""
    written = _written(path)
    return written is not None and _hashes(*written) is None


def _written(path: Path) -> tuple[Path, Manifest] | None:
    """The folder with the uwm.json of a checkpoint that uwm wrote, and what it says; None of others.

    `--also-export` writes the same model into a sub-folder, which has none of its own.
    """
    folder = path if path.is_dir() else path.parent
    if not (folder / MANIFEST).is_file():
        exported = path.is_dir() and folder.name in EXPORTS and (folder.parent / MANIFEST).is_file()
        return (folder.parent, read_manifest(folder.parent)) if exported else None
    manifest = read_manifest(folder)
    if path.is_file() and path.name not in manifest.get("output_sha256", {}):
        return None  # another file that lies beside the one of uwm.json
    return folder, manifest


def _hashes(folder: Path, manifest: Manifest) -> frozenset[bytes] | None:
    """The hashes of what a model learnt from; None where its uwm.json has none. Raises BadInput."""
    facts = manifest.get("calibration", {}).get("items")
    if facts is None:
        return None
    try:
        found = base64.b64decode(facts["hashes"], validate=True)
        count = int(facts["count"])
    except (KeyError, TypeError, ValueError, binascii.Error):
        found, count = b"?", 0
    if len(found) != BYTES * min(count, MOST):
        raise BadInput(
            f"{folder / MANIFEST}: calibration.items: expected count, and hashes of {BYTES} bytes each as base64; "
            "the file is damaged, write the folder anew"
        )
    return frozenset(found[start : start + BYTES] for start in range(0, len(found), BYTES))
