"""What a model reference points to: a path, the shipped model, or a repository on the Hub."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import BadInput, ResourceFault
from ..shipped_files import DEMO_MODEL, only_in_checkout
from .hub import FORMATS, fetch, wanted
from .registry import PREFIX, download, registered

HUB_PREFIX = "hf-hub:"
HUB = re.compile(r"(?:hf-hub:)?(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>\w[\w./-]*))?")


def resolve(
    reference: str | Path, *, revision: str | None = None, cache_dir: str | None = None, offline: bool = False
) -> Path:
    """The file or folder behind a model reference.

    Args:
        reference: A path; ``demo``; ``open_clip:ARCH/TAG``, of open_clip's registry; or ``hf-hub:ORG/NAME[@REV]``,
            where the prefix may be left out if no such path exists. A repository comes through huggingface_hub's cache,
            tokens and environment variables, and of its weights only one format.
        revision: Branch, tag or commit, where the reference names none.
        cache_dir: Instead of huggingface_hub's own (or open_clip's).
        offline: Never touch the network; HF_HUB_OFFLINE says the same.

    Raises:
        BadInput: Nothing is there, or there is no right to read it. ResourceFault: The network failed.
    """
    text = str(reference)
    if text == "demo":
        return DEMO_MODEL
    if (entry := registered(text)) is not None:
        return download(entry, cache_dir, offline)
    path = Path(reference)
    if not text.startswith(HUB_PREFIX) and (path.exists() or path.is_symlink()):
        return path
    if only_in_checkout(path):  # before the Hub is asked: anybody may have taken the name there
        raise BadInput(
            f"{reference}: no such folder; it comes with a checkout of uwm, in calibration/, and not with the "
            "installed package; run this in a checkout, or give the folder's path"
        )
    found = HUB.fullmatch(text)
    named = text.startswith(HUB_PREFIX)
    if found is None and named:
        raise BadInput(f"{text}: expected {HUB_PREFIX}ORG/NAME or {HUB_PREFIX}ORG/NAME@REVISION")
    if found is None or (not named and path.suffix in FORMATS):  # a file that is not there, and no repository's name
        forms = f"ORG/NAME, {HUB_PREFIX}ORG/NAME, {PREFIX}ARCH/TAG or demo"
        raise BadInput(f"{reference}: no such file or folder; expected one, or {forms}")
    revision = found["revision"] or revision
    try:
        return fetch(
            found["repository"], wanted, revision=revision, cache_dir=cache_dir, offline=offline, reference=text
        )
    except ResourceFault as error:
        raise ResourceFault(str(error) if named else f"{error}; no file or folder of that name is here") from None


def hub_name(reference: str) -> str | None:
    """ORG/NAME of a reference that leads to the Hub, through open_clip's registry too; None for any other."""
    if (entry := registered(reference)) is not None:
        return "/".join(entry.source.get("hf_hub", "").split("/")[:2]) or None
    found = HUB.fullmatch(reference)
    path = not reference.startswith(HUB_PREFIX) and Path(reference).exists()
    return None if path or found is None else found["repository"]


def name_of(reference: str, path: Path) -> str:
    """What outputs call a model: ORG/NAME, ``open_clip:ARCH/TAG`` or the last part of its path, never a whole path."""
    if reference.startswith(PREFIX):
        return reference
    return hub_name(reference) or path.resolve().name


def commit_of(path: Path) -> str | None:
    """The commit of a file or folder in the Hub's cache; None anywhere else."""
    for folder in (path, *path.parents):
        if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--"):
            return folder.name
    return None
