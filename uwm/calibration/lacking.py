"""Why no pair of a set serves a tower, and what to add."""

from __future__ import annotations

from .pairs import CalibrationSet
from .reading import comes_without_pictures

FOLDERS = "--safe-images FOLDER --unsafe-images FOLDER"


def lacking(calibration: CalibrationSet, tower: str) -> str:
    """Why no pair has both sides for a tower, and what to add; empty where some pair has them.

    Args:
        calibration: The pairs.
        tower: ``text`` or ``vision``.
    """
    if any(pair.has_text if tower == "text" else pair.has_image for pair in calibration.pairs):
        return ""
    name, pairs = calibration.name, len(calibration)
    if tower == "text":
        return f'none of {pairs} pairs of {name} has both captions; add "safe_text" and "unsafe_text" to the pairs'
    if missing := calibration.missing():
        counts = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in missing.items())
        return f"no pair of {name} has both images ({counts}); add their folders: {FOLDERS}"
    if comes_without_pictures(calibration.root):
        return f"{name} has captions only, and no folders of images were given; add {FOLDERS}"
    return f'none of {pairs} pairs of {name} has both images; add "safe_image" and "unsafe_image" to the pairs'
