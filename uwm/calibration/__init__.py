"""Calibration sets: pairs of safe and unsafe captions and pictures; read in several forms, checked, split."""

from .check import check
from .pairs import CalibrationPair, CalibrationSet, image_paths
from .reading import comes_without_pictures, read_calibration

__all__ = [
    "CalibrationPair",
    "CalibrationSet",
    "check",
    "comes_without_pictures",
    "image_paths",
    "read_calibration",
]
