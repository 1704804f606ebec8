"""What a model reference points to: a path, the shipped model, or a repository on the Hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import BadInput, ResourceFault
from ..shipped_files import DEMO_MODEL
from .registry import PREFIX, download, registered

HUB = re.compile(r"(?:hf-hub:)?(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
UNWANTED = ("*.h5", "*.msgpack", "*.onnx", "*.ot", "onnx/*", "openvino/*", "*.md", ".git*")


def resolve(
    reference: str | Path, *, revision: str | None = None, cache_dir: str | None = None, offline: bool = False
) -> Path:
    """The file or folder behind a model reference.

    Args:
        reference: A path; ``demo``; ``open_clip:ARCH/TAG``, of open_clip's registry; or ``hf-hub:ORG/NAME[@REV]``,
            where the prefix may be left out if no such path exists. A repository comes through huggingface_hub's cache,
            tokens and environment variables.
        revision: Branch, tag or commit, where the reference names none.
        cache_dir: Instead of huggingface_hub's own (or open_clip's).
        offline: Never touch the network; HF_HUB_OFFLINE says the same.

    Raises:
        BadInput: Nothing is there. ResourceFault: The network failed.
    """
    text = str(reference)
    if text == "demo":
        return DEMO_MODEL
    offline = offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    if (entry := registered(text)) is not None:
        return download(entry, cache_dir, offline)
    path = Path(reference)
    if not text.startswith("hf-hub:") and (path.exists() or path.is_symlink()):
        return path
    found = HUB.fullmatch(text)
    if found is None:
        raise BadInput(f"{reference}: no such file or folder")
    return _download(found["repository"], found["revision"] or revision, cache_dir, offline, text)


def hub_name(reference: str) -> str | None:
    """ORG/NAME of a reference that leads to the Hub; None for a path or the demo."""
    found = HUB.fullmatch(reference)
    elsewhere = reference == "demo" or reference.startswith(PREFIX) or Path(reference).exists()
    return None if elsewhere or found is None else found["repository"]


def _download(repository: str, revision: str | None, cache_dir: str | None, offline: bool, reference: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                cache_dir=cache_dir,
                local_files_only=offline,
                ignore_patterns=list(UNWANTED),
            )
        )
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
        raise BadInput(f"{reference}: no such file or folder, and no such repository or revision on the Hub") from None
    except LocalEntryNotFoundError:
        where = "the Hub's cache (offline)" if offline else "reach on the Hub, and not in its cache"
        raise BadInput(f"{reference}: no such file or folder, and not in {where}") from None
    except OSError as error:
        raise ResourceFault(f"{reference}: the Hub could not be reached ({type(error).__name__}); try again") from None
