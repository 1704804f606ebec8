"""Calibration sets: pairs of safe and unsafe captions and pictures; read in several forms, checked, split."""

from .check import check
from .groups import ImageHashes, Shared, shared
from .pairs import CalibrationPair, CalibrationSet, image_paths
from .preservation import Preservation, read_preservation
from .reading import comes_without_pictures, read_calibration

__all__ = [
    "CalibrationPair",
    "CalibrationSet",
    "ImageHashes",
    "Preservation",
    "Shared",
    "check",
    "comes_without_pictures",
    "image_paths",
    "image_sha256",
    "read_calibration",
    "read_preservation",
    "shared",
]
