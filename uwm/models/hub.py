"""The Hugging Face Hub: which files of a repository are fetched, its cache, and what its errors mean."""

from __future__ import annotations

import glob
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from ..checkpoint.sources import CANDIDATES, OTHER_FORMATS, OWN, SHARD_INDEX, WEIGHT_SUFFIXES, shard_indices
from ..errors import BadInput, ResourceFault, UwmError

UNWANTED = (".git*", "*.md", "*.ot", "*.gguf", "*.tflite", "*.onnx_data", "*.mlmodel", "events.out.tfevents.*")
TOLD = ("README.md", "LICENSE*", "LICENCE*", "NOTICE*", "COPYING*")
FORMATS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")  # in the order in which they are preferred
REFUSALS = (400, 402, 403, 404, 409, 413, 422)  # statuses that a second try does not change
MISSING_OFFLINE = "no such file or folder, and not in the Hub's cache (offline)"
LOGIN = "log in with `hf auth login` or set HF_TOKEN"

Choose = Callable[[list[str]], list[str]]


def fetch(
    repository: str,
    choose: Choose,
    *,
    reference: str,
    revision: str | None = None,
    cache_dir: str | None = None,
    offline: bool = False,
) -> Path:
    """The cache's folder of a repository, with the chosen files in it.

    Args:
        repository: ORG/NAME.
        choose: From all file names of the repository to those that are needed.
        reference: What the user wrote, for the errors.
        revision: Branch, tag or commit.
        cache_dir: Instead of huggingface_hub's own.
        offline: Take what the cache has. It is also what serves when the Hub cannot be reached.

    Raises:
        BadInput: There is no such repository, no right to read it, or (offline) it is not in the cache.
        ResourceFault: The network or the Hub failed.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, RevisionNotFoundError

    place: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir}
    with quiet():
        try:
            if is_offline(offline):
                return _cached(repository, choose, place, BadInput(f"{reference}: {MISSING_OFFLINE}"))
            about = HfApi().model_info(repository, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            names = [file.rfilename for file in about.siblings or []]
        except (HFValidationError, RevisionNotFoundError) as error:
            raise fault(error, reference) from None
        except faults() as error:
            return _cached(repository, choose, place, fault(error, reference))
        try:
            patterns = [glob.escape(name) for name in choose(names)]
            return Path(snapshot_download(repository, allow_patterns=patterns, **place))
        except faults() as error:
            raise fault(error, reference) from None


def _cached(repository: str, choose: Choose, place: dict[str, Any], missing: UwmError) -> Path:
    """The folder in the cache. Raises `missing` where there is none, or when it lacks files."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, local_files_only=True, allow_patterns=[], **place))
    except (LocalEntryNotFoundError, ValueError):
        raise missing from None
    chosen = [name for name in choose(_listing(repository, place)) if not is_told(name)]
    lacking = [name for name in chosen if not (folder / name).exists()]
    if lacking:
        raise type(missing)(f"{missing}; only a part of it is there, without {', '.join(lacking[:3])}") from None
    return folder


def _listing(repository: str, place: dict[str, Any]) -> list[str]:
    """All file names of a cached revision; empty where huggingface_hub (before 2.0) did not keep them."""
    try:
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError
    except ImportError:
        return []
    try:
        return [file.path for file in get_cached_repo_tree(repository, **place)]
    except CachedRepoTreeNotFoundError:
        return []


# ---------------------------------------------------------------- which files


def is_told(name: str) -> bool:
    """Whether a file is the card or the licence of a repository, which the model does not need."""
    return any(fnmatch(name, pattern) for pattern in TOLD)


def wanted(names: list[str]) -> list[str]:
    """Of a repository's files those that a model needs: side files, and each folder's weights in one format only.

    The format is the one that `uwm.checkpoint` would read: safetensors where there is any.
    """
    folders: dict[str, list[str]] = {}
    side_files = []
    for name in sorted(names):
        path = PurePosixPath(name)
        if is_told(name):
            side_files.append(name)
            continue
        if OTHER_FORMATS.intersection(path.parts[:-1]) or any(
            fnmatch(part, u) for part in path.parts for u in UNWANTED
        ):
            continue
        weights = path.suffix in WEIGHT_SUFFIXES or SHARD_INDEX.fullmatch(path.name)
        if weights and name not in OWN:
            folders.setdefault(str(path.parent), []).append(path.name)
        else:
            side_files.append(name)
    if "model_index.json" in side_files:
        folders.pop(".", None)  # beside a pipeline's parts: the same weights in one big file
    chosen = [(PurePosixPath(folder) / n).as_posix() for folder, found in folders.items() for n in _weights(found, folder == ".")]  # noqa: E501  # fmt: skip
    return sorted([*side_files, *chosen])


def _weights(names: list[str], root: bool) -> list[str]:
    """The weights of one folder in the first format that it has; in the root only what `uwm` can open."""
    for suffix in FORMATS:
        stored = [name for name in names if name.endswith(suffix)]
        plain = [name for name in stored if "." not in name.removesuffix(suffix)]  # no fp16, no non_ema
        shards = [
            [index, *([name for name in stored if re.fullmatch(shard, name)] or stored)]
            for index, kind, shard in shard_indices(names)
            if kind == suffix
        ]
        if shards and shards[0][0].endswith(".index.json"):
            return shards[0]
        if known := [name for name in CANDIDATES if name in stored]:
            return known[:1]
        if plain and not root:
            return plain
        if shards or (stored and not root):
            return shards[0] if shards else stored
    return []


# ---------------------------------------------------------------- offline, errors


def is_offline(asked: bool = False) -> bool:
    """Whether the network is forbidden, here or by HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    return asked or constants.HF_HUB_OFFLINE


@contextmanager
def network(allowed: bool) -> Iterator[None]:
    """Unless allowed, keep huggingface_hub off the network, and with it transformers and open_clip."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not allowed
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def quiet() -> Iterator[None]:
    """Bars only on a terminal, no warnings of huggingface_hub: of a lost connection the user hears once, from us."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    logger = logging.getLogger("huggingface_hub")
    level, bars = logger.level, not are_progress_bars_disabled() and not sys.stderr.isatty()
    logger.setLevel(max(level, logging.ERROR))
    if bars:
        disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            enable_progress_bars()


def faults() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises when something is wrong outside of us; its hf_xet raises RuntimeError."""
    from huggingface_hub.errors import HTTPError

    return OSError, HTTPError, ValueError, RuntimeError


def fault(error: Exception, what: str) -> UwmError:
    """huggingface_hub's error as one of ours, on one line that says what to do.

    Args:
        error: What it raised.
        what: The reference or repository that it was about.
    """
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    said = getattr(error, "server_message", None) or str(error)
    first = next((line.strip() for line in said.splitlines() if line.strip()), type(error).__name__)
    local = isinstance(error, OSError) and not isinstance(error, ConnectionError) and error.strerror  # the disk, say
    place = f"{getattr(error, 'filename', None) or 'the cache'}"
    meanings = (
        (isinstance(error, errors.GatedRepoError), BadInput,
         f"gated; ask for access on its page on the Hub, and {LOGIN}"),
        (isinstance(error, errors.RevisionNotFoundError), BadInput, "the repository has no such revision"),
        (isinstance(error, errors.RepositoryNotFoundError), BadInput,
         f"no such file or folder here, and no such repository on the Hub; if it is private, {LOGIN}"),
        (status == 401, BadInput, f"the Hub does not accept the token ({first}); {LOGIN}"),
        (status in REFUSALS, BadInput, f"the Hub refused with {status} ({first})"),
        (status is not None, ResourceFault, f"the Hub answered {status}; try again later"),
        (isinstance(error, ValueError), BadInput, " ".join(said.split())[:300]),
        (local, ResourceFault, f"{place}: {local}"),
        (True, ResourceFault, f"the Hub could not be reached, or broke off ({type(error).__name__}); try again"),
    )  # fmt: skip
    kind, text = next((kind, text) for holds, kind, text in meanings if holds)
    return kind(f"{what}: {text}")
