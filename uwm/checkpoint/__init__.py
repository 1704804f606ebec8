"""Checkpoints as files: lazy reading, fingerprints, streaming and atomic writing. No model library is needed."""

from .json_files import read_json
from .opening import open_checkpoint
from .reader import Checkpoint, TensorInfo, file_sha256
from .sources import check_written
from .writer import LazyTensor, write_edited, write_tensors

__all__ = [
    "Checkpoint",
    "LazyTensor",
    "TensorInfo",
    "check_written",
    "file_sha256",
    "open_checkpoint",
    "read_json",
    "write_edited",
    "write_tensors",
]
