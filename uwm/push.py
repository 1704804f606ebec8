"""Upload a folder that uwm wrote to the Hugging Face Hub."""

from __future__ import annotations

import glob
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checkpoint import file_sha256
from .errors import BadInput, InvalidResult
from .manifest import read_manifest
from .models.hub import LOGIN, fault, faults, is_offline, quiet
from .outputs import MANIFEST
from .version import __version__

CARD = "README.md"


@dataclass(frozen=True)
class Pushed:
    """An upload, or in a dry run the plan of one.

    Attributes:
        files: Name -> bytes.
        url: The page of the repository, of its branch where one was named, or of the pull request.
        commit: Of the Hub; None in a dry run.
        warnings: A missing card, and remarks of the Hub on the card.
    """

    files: dict[str, int]
    url: str
    commit: str | None
    warnings: tuple[str, ...] = ()


def push(
    folder: str | Path,
    repository: str,
    *,
    private: bool = False,
    branch: str | None = None,
    message: str | None = None,
    create_pr: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    dry_run: bool = False,
    offline: bool = False,
) -> Pushed:
    """Upload a folder that `uwm edit`, `apply` or `revert` wrote, in one commit, through huggingface_hub.

    Files of the same names are replaced; others there stay. Hidden files are not uploaded.

    Args:
        folder: Its weights must have the sha256 that its ``uwm.json`` states.
        repository: ORG/NAME, made if there is none.
        private: Make it private; an existing public repository is refused.
        branch: Where to commit, made if there is none; the main branch by default.
        message: Of the commit.
        create_pr: Open a pull request with the commit, for which a right to write is not needed.
        include, exclude: Only files that fit one of these patterns, and none that fit one of those, as in `hf upload`.
        dry_run: Check and list the files; the network is not used.
        offline: Refuse to upload; HF_HUB_OFFLINE says the same.

    Raises:
        BadInput: Not such a folder, a card that the Hub would refuse, a wrong name, no token, or no right to write.
        InvalidResult: The weights changed since they were written. ResourceFault: The network or the Hub failed.
    """
    from huggingface_hub import constants

    folder, repository = Path(folder), _named(repository)
    files = _chosen(folder, _checked(folder), include, exclude)
    url = f"{constants.ENDPOINT}/{repository}" + (f"/tree/{branch}" if branch else "")
    bare = () if (folder / CARD).is_file() else (f"{folder} has no model card (README.md); `uwm edit` writes one",)
    if dry_run:
        return Pushed(files, url, None, bare)
    _refuse_offline(offline, repository)
    message = message or f"Upload a model edited by uwm {__version__}"
    with _remarks() as said:
        try:
            commit, request = _upload(folder, list(files), repository, private, branch, message, create_pr)
        except faults() as error:
            raise fault(error, repository) from None
    return Pushed(files, request or url, commit, (*bare, *said))


def _refuse_offline(offline: bool, repository: str) -> None:
    if is_offline(offline):
        raise BadInput(f"{repository}: `uwm push` needs the network, which --offline or HF_HUB_OFFLINE forbids")


def _named(repository: str) -> str:
    """ORG/NAME. Raises BadInput for anything else."""
    name = repository.removeprefix("hf-hub:")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise BadInput(f"{name}: expected ORG/NAME, the repository on the Hub")
    return name


@contextmanager
def _remarks() -> Iterator[list[str]]:
    """What huggingface_hub warns of while the body runs, once it is done."""
    said: list[str] = []
    with quiet(), warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always")
        yield said
    said += [" ".join(str(one.message).split()) for one in remarks if one.category is UserWarning]


def _upload(
    folder: Path, files: list[str], repository: str, private: bool, branch: str | None, message: str, create_pr: bool
) -> tuple[str | None, str | None]:
    """Make the repository and the branch if they are missing, and commit; the commit, and the pull request's page."""
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise BadInput(f"{repository}: no token for the Hub; {LOGIN}")
    api = HfApi()
    api.create_repo(repository, private=private or None, exist_ok=True)
    if private and not api.model_info(repository).private:
        raise BadInput(f"{repository}: exists and is public, which --private does not change; choose another name")
    if branch:
        api.create_branch(repository, branch=branch, exist_ok=True)
    done = api.upload_folder(
        repo_id=repository,
        folder_path=folder,
        revision=branch,
        commit_message=message,
        allow_patterns=[glob.escape(name) for name in files],
        create_pr=create_pr or None,
    )
    return done.oid, done.pr_url


def _chosen(folder: Path, files: dict[str, int], include: Sequence[str], exclude: Sequence[str]) -> dict[str, int]:
    """The files that patterns let through. Raises BadInput where none is left."""
    from huggingface_hub.utils import filter_repo_objects

    chosen = filter_repo_objects(files, allow_patterns=[*include] or None, ignore_patterns=[*exclude] or None)
    found = {name: files[name] for name in chosen}
    if not found:
        raise BadInput(f"{folder}: --include and --exclude leave no file to upload; it has {', '.join(sorted(files))}")
    return found


def _checked(folder: Path) -> dict[str, int]:
    """Make every check that needs no network; return the files to upload with their sizes."""
    if not (folder / MANIFEST).is_file():
        raise BadInput(
            f"{folder}: uwm did not write this folder (no {MANIFEST}); push what `uwm edit` or `apply` wrote"
        )
    promised = read_manifest(folder).get("output_sha256")
    if not isinstance(promised, dict) or not promised:
        raise BadInput(f"{folder / MANIFEST}: names no output_sha256, so the weights cannot be checked; write it anew")
    files = {}
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if any(part.startswith(".") for part in place.parts) or path.is_dir():
            continue
        if path.is_symlink() or not path.is_file():
            raise BadInput(f"{path}: a link or no regular file, which uwm never writes; remove it")
        files[place.as_posix()] = path.stat().st_size
    for name, sha256 in promised.items():
        if name not in files:
            raise InvalidResult(f"{folder}: {name}, which {MANIFEST} promises, is missing; write the folder anew")
        if file_sha256(folder / name) != sha256:
            raise InvalidResult(f"{folder / name}: not what uwm wrote (its sha256 is not the one in {MANIFEST})")
    if CARD in files:
        _check_card(folder / CARD)
    return files


# ---------------------------------------------------------------- the card


def _check_card(path: Path) -> None:
    """Refuse metadata that the Hub would refuse, before anything is uploaded. Raises BadInput."""
    import yaml
    from huggingface_hub import ModelCard, metadata_load

    try:
        metadata = metadata_load(path) or {}
        found = _wrong(metadata)
        if not found:
            ModelCard(path.read_text("utf-8"))  # reads the results
    except (ValueError, TypeError, AttributeError, KeyError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())[:200]
        raise BadInput(f"{path}: the Hub would refuse its metadata ({said})") from None
    if found:
        raise BadInput(f"{path}: the Hub would refuse its metadata ({found[0][0]}: {found[0][1]!r})")


def _wrong(metadata: dict[str, Any]) -> list[tuple[str, Any]]:
    """Metadata of a model card whose type or form the Hub would refuse."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    found = []
    for key in ("tags", "base_model", "datasets", "language"):
        values = metadata.get(key) or []
        values = [values] if isinstance(values, str) else values
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            found.append((key, values))
            continue
        for value in values if key == "base_model" else []:
            try:
                validate_repo_id(value)
            except HFValidationError:
                found.append((key, value))
    texts = ("library_name", "pipeline_tag", "license_name", "license_link")
    return found + [(key, metadata[key]) for key in texts if not isinstance(metadata.get(key) or "", str)]
