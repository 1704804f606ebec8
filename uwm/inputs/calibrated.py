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


def item_facts(items: Iterable[Item]) -> ItemFacts:
    """Short hashes of the captions and images that a model learnt from, for uwm.json.

    Args:
        items: As `CalibrationPair.items` gives them, in any order and as often as they occur.
    """
    hashes = sorted({_short(item) for item in items})
    kept = b"".join(hashes[:MOST])
    return {"count": len(hashes), "hashes": base64.b64encode(kept).decode()}


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
    folder = path if path.is_dir() else path.parent
    if not (folder / MANIFEST).is_file():
        return None
    manifest = read_manifest(folder)
    if path.is_file() and path.name not in manifest.get("output_sha256", {}):
        return None  # another file that lies beside the one of uwm.json
    known = _hashes(folder, manifest)
    if known is None:
        return None
    items = pairs.items()
    seen = frozenset(item for own in items for item in own if _short(item) in known)
    whole = manifest["calibration"]["items"]["count"] == len(known)
    return Calibrated(column, shared(seen, items), len(pairs), whole)


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
