"""Calibration sets: pairs of safe and unsafe captions and pictures; read in several forms, checked, split."""

from .check import check
from .groups import ImageHashes, Shared, shared
from .pairs import CalibrationPair, CalibrationSet, image_paths
from .preservation import Preservation, read_preservation
from .reading import comes_without_pictures, is_plain_folder, loose_images, read_calibration
from .signal import Signal, demand_signal, signal

__all__ = [
    "CalibrationPair",
    "CalibrationSet",
    "ImageHashes",
    "Preservation",
    "Shared",
    "Signal",
    "check",
    "comes_without_pictures",
    "demand_signal",
    "image_paths",
    "is_plain_folder",
    "loose_images",
    "read_calibration",
    "read_preservation",
    "shared",
    "signal",
]
