"""Embeddings kept between runs, under a key over everything that decides them. Never captions or pictures."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image

from . import records
from .calibration import CalibrationSet
from .errors import UwmError
from .models import Model
from .schema import SHA256, TensorForm, keyed
from .signed import Signer, cache_folder
from .statistics.batches import embed_inputs
from .version import __version__

FORMAT = 3  # raise it when pictures are read or embeddings are made in another way
MAX_BYTES = 2 << 30
OURS = re.compile(r"(\.uwm-[0-9a-f]{16}-)?[0-9a-f]{64}\.safetensors")  # entries, and what a kill left of one
PROBE_SIZES = ((97, 211), (640, 427))  # width and height: below and above what models take, and not square
PROBE_TEXTS = ["a picture of 2 dogs", "Ünusual — words, and one of many letters: electroencephalographically"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbeddingCache:
    """A folder with one file an entry; the ones used longest ago go when they are more than `max_bytes` together.

    It never raises: what cannot be read, is damaged or belongs to another key is not there, and what cannot be written
    is not kept. Every entry has a keyed hash of its content, so that what others put there is not believed; the key is
    a file beside the folder, made once, that only the user can read.
    """

    folder: Path
    max_bytes: int = MAX_BYTES

    @classmethod
    def default(cls) -> EmbeddingCache | None:
        """In ``$UWM_EMBEDDINGS_DIR``, ``$XDG_CACHE_HOME/uwm`` or ``~/.cache/uwm``; None where there is no home."""
        base = cache_folder()
        return None if base is None else cls(base / "embeddings")

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """The tensors stored under a key, or None."""
        path = self._path(key)
        try:
            tensors, _ = self._signer.read(path, key)
        except (UwmError, OSError) as error:
            logger.info("no cached embeddings: %s", error)
            return None
        with contextlib.suppress(OSError):  # of a cache that may only be read
            os.utime(path)
        return tensors

    def put(self, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Store tensors, atomically; those over half of what the cache may hold are not kept."""
        if sum(tensor.nbytes for tensor in tensors.values()) > self.max_bytes // 2:
            return
        try:
            self._signer.write(self._path(key), key, tensors)
            self._shrink()
        except (UwmError, OSError) as error:
            logger.info("embeddings not cached: %s", error)

    @property
    def _signer(self) -> Signer:
        return Signer("embeddings", FORM, self.folder.with_name(f"{self.folder.name}.key"))

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _shrink(self) -> None:
        """Remove the entries used longest ago; never a file that is not ours."""
        total = 0
        ours = [path for path in self.folder.iterdir() if OURS.fullmatch(path.name)]
        for path in sorted(ours, key=lambda path: path.stat().st_mtime, reverse=True):
            total += path.stat().st_size
            if total > self.max_bytes:
                path.unlink(missing_ok=True)


SIDES = ("safe_text", "unsafe_text", "safe_image", "unsafe_image")
SIDE = TensorForm(("float32",), (None, None))
FORM = records.Form(keyed({"key": SHA256, "mac": SHA256}), lambda about: ({}, dict.fromkeys(SIDES, SIDE)))


@torch.no_grad()
def embedding_key(model: Model, calibration: CalibrationSet, batch_size: int) -> str:
    """sha256 over all that decides the embeddings of a set, in the order of its pairs.

    That is: the set's content; every tensor of the live module, an open patch included; the tokens of every caption;
    what preprocessing makes of two made-up pictures, and the model of these and of two texts, which tells apart
    architectures, activations and preprocessors whose tensors are equal; device and batch size, by which rounding
    differs; and the versions of uwm, torch and Pillow.

    Args:
        model: As it is now.
        calibration: The pairs.
        batch_size: Pairs at a time.
    """
    about = {"format": FORMAT, "uwm": __version__, "torch": torch.__version__, "pillow": PIL.__version__}
    about |= {"device": model.device.type, "batch_size": batch_size, "set": calibration.fingerprint()}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(model.module.state_dict().items()):
        _feed(digest, name, [tensor])
    texts = [text for pair in calibration.pairs for text in (pair.safe_text, pair.unsafe_text) if text is not None]
    for start in range(0, len(texts), batch_size):
        _feed(digest, "tokens", model.tokenize(texts[start : start + batch_size]))
    pixels = model.preprocess([_noise(*size) for size in PROBE_SIZES])
    tokens = model.tokenize(PROBE_TEXTS)
    _feed(digest, "probe", [pixels, *tokens, embed_inputs(model, pixels, None), embed_inputs(model, *tokens)])
    return digest.hexdigest()


def _feed(digest: hashlib._Hash, name: str, tensors: Iterable[torch.Tensor]) -> None:
    for tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
