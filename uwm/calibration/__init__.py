"""Calibration sets: pairs of safe and unsafe captions and pictures; read in several forms, checked, split."""

from .check import check
from .pairs import CalibrationPair, CalibrationSet, image_paths, image_sha256
from .preservation import Preservation, read_preservation
from .reading import comes_without_pictures, read_calibration

__all__ = [
    "CalibrationPair",
    "CalibrationSet",
    "Preservation",
    "check",
    "comes_without_pictures",
    "image_paths",
    "image_sha256",
    "read_calibration",
    "read_preservation",
]
