"""Files of the user's own cache, each with a keyed hash of its content: what others put there is not believed."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import records
from .checkpoint.dtypes import Bits
from .errors import BadInput

if TYPE_CHECKING:
    import torch

SECRET = 32  # bytes


def cache_folder() -> Path | None:
    """``$UWM_EMBEDDINGS_DIR``, ``$XDG_CACHE_HOME/uwm`` or ``~/.cache/uwm``; None where there is no home."""
    if own := os.environ.get("UWM_EMBEDDINGS_DIR"):
        return Path(own)
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        base = base if base.is_absolute() else Path.home() / ".cache"  # XDG: a relative path is to be ignored
    except RuntimeError:
        return None
    return base / "uwm"


@dataclass(frozen=True)
class Signer:
    """Writes and reads signed records of one kind.

    Args:
        kind: Of the records.
        form: What a record holds; its description has ``key`` and ``mac``.
        secret: File with the user's own secret, made once, that only the user can read.
    """

    kind: str
    form: records.Form
    secret: Path

    def read(self, path: Path, key: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors and description. Raises UwmError and OSError for all that this user's uwm did not write so."""
        tensors, about = records.read(path, self.kind, self.form)
        described = {name: about[name] for name in about if name not in ("kind", "format", "mac")}
        if about["key"] != key or not hmac.compare_digest(about["mac"], _mac(_secret(self.secret), described, tensors)):
            raise BadInput(f"{path}: not an entry that this user's uwm wrote, or damaged")
        return tensors, described

    def write(
        self, path: Path, key: str, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any] | None = None
    ) -> None:
        """Write a record atomically, into folders that are made. Raises UwmError and OSError."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        described = {**(about or {}), "key": key}
        mac = _mac(_secret(self.secret, make=True), described, tensors)
        records.write(path, self.kind, tensors, {**described, "mac": mac})


def _secret(path: Path, make: bool = False) -> bytes:
    """The user's own secret, by which entries that others put into the folder are told; made where there is none.

    Raises:
        BadInput: The file is a link, another user's, open to others, or of another size. OSError: It is not there.
    """
    if make and not os.path.lexists(path):
        fresh = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
        try:
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
                stream.write(secrets.token_bytes(SECRET))
            with contextlib.suppress(FileExistsError):  # another process was faster: its secret counts
                os.link(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    with os.fdopen(descriptor, "rb") as stream:
        found, held = os.fstat(descriptor), stream.read(SECRET + 1)
    ours = not hasattr(os, "geteuid") or (found.st_uid == os.geteuid() and not found.st_mode & 0o077)
    if not ours or not stat.S_ISREG(found.st_mode) or len(held) != SECRET:
        raise BadInput(f"{path}: expected {SECRET} bytes that only you can read, found another file; remove it")
    return held


def _mac(secret: bytes, described: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """A keyed hash over everything that an entry says."""
    digest = hashlib.blake2b(json.dumps(described, sort_keys=True).encode(), key=secret, digest_size=32)
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(Bits.of(tensor).array.data)
    return digest.hexdigest()
