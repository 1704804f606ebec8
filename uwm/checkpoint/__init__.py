"""Checkpoints as files: lazy reading, fingerprints, streaming and atomic writing. No model library is needed."""

from .folder import MANIFEST, check_output, new_folder, passing_folder
from .json_files import read_json
from .opening import open_checkpoint
from .reader import Checkpoint, TensorInfo, file_sha256
from .writer import LazyTensor, write_edited, write_tensors

__all__ = [
    "MANIFEST",
    "Checkpoint",
    "LazyTensor",
    "TensorInfo",
    "check_output",
    "file_sha256",
    "new_folder",
    "open_checkpoint",
    "passing_folder",
    "read_json",
    "write_edited",
    "write_tensors",
]
