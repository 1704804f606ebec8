"""From file to file: apply a patch and revert it. No model library is needed.

A patch names tensors by their canonical names, so it fits every key layout of the same weights. Where a checkpoint
numbers its towers otherwise (the second text encoder of Stable Diffusion XL), the tower whose matrices are the patch's
base is taken.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checkpoint import Checkpoint, check_written, open_checkpoint, write_edited
from ..checkpoint.dtypes import Bits
from ..checkpoint.reach import idle, unread
from ..checkpoint.reader import cast_sha256, matrix_sha256
from ..errors import BadInput
from ..manifest import FORMAT, Manifest, ModelFacts, write_manifest
from ..models.references import resolve
from ..outputs import output_folder
from ..version import __version__
from ..weights import WeightId
from .patch import PATCH_FILE, Patch
from .trace import Trace, trace

if TYPE_CHECKING:
    import torch

HASHERS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class Rewritten:
    """What was written: sha256 of every weight file by name, the patch as it fits this file, and towers left out.

    `notes` are what a user should know: of how the checkpoint was read, of what was written, and of every changed
    tensor that the model around its tower never reads.
    """

    hashes: dict[str, str]
    patch: Patch
    left_out: tuple[str, ...]
    notes: tuple[str, ...] = ()


def apply(
    reference: str | Path,
    patch: Patch,
    *,
    output: str | Path,
    overwrite: bool = False,
    cast: bool = False,
    key: str | None = None,
) -> Rewritten:
    """Write an edited copy of a checkpoint, tensor by tensor; no model library is needed.

    Args:
        reference: The checkpoint, as in `uwm.load`.
        patch: Made for these very weights, in any layout. Of towers that the checkpoint does not have at all (the text
            tower's, inside LLaVA) the patch's part is left out.
        output: The folder to write: weights under the input's names, side files, ``uwm_patch.safetensors``.
        overwrite: Replace an output that exists.
        cast: Also accept the base cast to another of float32, float16 and bfloat16.
        key: Which entry of a training checkpoint holds the weights, where there are several.

    Raises:
        BadInput: The checkpoint is not the patch's base (already patched, perhaps), or the output cannot be used.
        InvalidResult: What is on disk is not what was planned. ResourceFault: the disk failed.
    """
    output = Path(output)
    checkpoint = open_checkpoint(resolve(reference), key)
    check_written(checkpoint.path)
    with output_folder(output, [checkpoint.path], overwrite) as place:
        fitted, left_out = fit(checkpoint, patch, cast=cast)
        with place.make() as folder:
            hashes = write_patched(checkpoint, fitted, folder)
            _write_manifest(folder, "apply", checkpoint, fitted, hashes)
    notes = (*checkpoint.notes, *_bare_notes(checkpoint, output), *idle(unread(checkpoint), fitted.changes))
    return Rewritten(hashes, fitted, left_out, (*place.notes, *notes))


def write_patched(checkpoint: Checkpoint, patch: Patch, folder: Path, *, with_config: bool = False) -> dict[str, str]:
    """Write the edited weights, the side files and the patch itself into an existing folder.

    Args:
        checkpoint: The source, left untouched.
        patch: As `fit` returns it for this checkpoint, which is how the written patch can be undone.
        folder: An existing, empty folder.
        with_config: As in `uwm.checkpoint.write_edited`.

    Returns:
        sha256 of every weight file written, by name.
    """
    hashes = write_edited(checkpoint, patch.changes, folder, with_config=with_config)
    keys = {checkpoint.tensors[name].key for name in patch.changes}
    tied = {key: others for key, others in checkpoint.aliases.items() if key in keys}
    replace(patch, aliases=tied).save(folder / PATCH_FILE)
    return hashes


def revert(
    reference: str | Path,
    patch: Patch,
    *,
    output: str | Path,
    overwrite: bool = False,
    cast: bool = False,
    key: str | None = None,
) -> Rewritten:
    """Undo a patch from file to file; the result's tensors are the original's, byte for byte.

    Arguments and result as `apply`; but for negated entries, the patch must be the one that `apply` wrote.

    Raises:
        BadInput: The checkpoint does not hold this patch. InvalidResult, ResourceFault: as `apply`.
    """
    output = Path(output)
    checkpoint = open_checkpoint(resolve(reference), key)
    check_written(checkpoint.path)
    with output_folder(output, [checkpoint.path], overwrite) as place:
        fitted, left_out = fit(checkpoint, patch, cast=cast, edited=True)
        with place.make() as folder:
            undo = {name: step for name in fitted.changes if (step := fitted.undo(name)) is not None}
            hashes = write_edited(checkpoint, undo, folder, patch.aliases)
            _write_manifest(folder, "revert", checkpoint, fitted, hashes)
    return Rewritten(hashes, fitted, left_out, (*place.notes, *checkpoint.notes, *_bare_notes(checkpoint, output)))


def _bare_notes(checkpoint: Checkpoint, output: Path) -> Iterator[str]:
    """What an archive says by itself, and the weights alone do not."""
    if any(file.scripted for file in checkpoint.files):
        yield f"{output}: bare weights; the archive said its activation, which is QuickGELU; pass --quick-gelu"


def _write_manifest(folder: Path, verb: str, checkpoint: Checkpoint, patch: Patch, hashes: dict[str, str]) -> None:
    """A short uwm.json: what was done, to which files, with which patch, and what came out."""
    read: ModelFacts = {"layout": checkpoint.layout.name, "sha256": checkpoint.file_hashes()}
    about: Manifest = {"format": FORMAT, "output_sha256": hashes, "model": read, "patch": dict(patch.recipe)}
    write_manifest(folder, {**about, "uwm": __version__, "verb": verb})


# ---------------------------------------------------------------- whether a patch fits


def fit(
    checkpoint: Checkpoint, patch: Patch, *, cast: bool = False, edited: bool = False
) -> tuple[Patch, tuple[str, ...]]:
    """The patch as this checkpoint names and stores its tensors, and the patch's towers that it does not have.

    A patch fitted to its base knows what the edit makes of it, and what the inverse of each change misses.

    Args:
        checkpoint: The base of the patch, or (`edited`) what it was applied to.
        patch: Of any key layout of the same weights.
        cast: Also accept the base cast to another dtype.

    Raises:
        BadInput: The tensors are others; the message says which and why.
    """
    if edited and any(patch.undo(name) is None for name in patch.changes):
        raise BadInput(f"a patch that does more than negate is undone with the {PATCH_FILE} that `uwm apply` wrote")
    find = _find_edited if edited else _find_base
    found: dict[WeightId, Found] = {}
    left_out = []
    for tower in sorted({name.tower for name in patch.changes}):
        ours = [name for name in patch.changes if name.tower == tower]
        if any(there.modality == ours[0].modality for there in checkpoint.weights):
            found |= _fit_tower(checkpoint, patch, ours, lambda name, there: find(checkpoint, patch, name, there, cast))
        else:
            left_out.append(tower)
    if not found:
        raise BadInput(f"{checkpoint.path}: the patch edits {', '.join(left_out)}, which this checkpoint does not have")
    return _renamed(checkpoint, patch, found, None if edited else cast), tuple(left_out)


@dataclass(frozen=True)
class Found:
    """A tensor of the patch in a checkpoint: its name there, and what the edit makes of it."""

    name: WeightId
    trace: Trace | None = None  # None where the checkpoint is the edited one


def _fit_tower(
    checkpoint: Checkpoint, patch: Patch, ours: list[WeightId], find: Callable[[WeightId, WeightId], Found]
) -> dict[WeightId, Found]:
    """The patch's tensors of one tower in the checkpoint, of the first tower that passes."""
    towers = sorted({name.tower for name in checkpoint.weights if name.modality == ours[0].modality})
    towers.sort(key=lambda tower: tower != ours[0].tower)  # its namesake first
    failure: BadInput | None = None
    for tower in towers:
        pool = ThreadPoolExecutor(HASHERS)
        try:
            waiting = {name: pool.submit(find, name, replace(name, tower=tower)) for name in ours}
            return {name: found.result() for name, found in waiting.items()}
        except BadInput as error:
            failure = failure or error
        finally:
            pool.shutdown(cancel_futures=True)
    assert failure is not None
    raise failure


def _renamed(checkpoint: Checkpoint, patch: Patch, found: dict[WeightId, Found], cast: bool | None) -> Patch:
    """The patch under the checkpoint's own names; `cast` is None where the checkpoint is the edited one."""

    def under(values: Mapping[WeightId, Any]) -> dict[WeightId, Any]:
        pairs = ((found[ours].name, values[ours]) for ours in found if ours in values)
        return dict(sorted(pairs, key=lambda pair: pair[0]))

    names = ("changes", "shapes", "base", "edited", "missed", "norms", "casts")
    renamed: dict[str, Any] = {name: under(getattr(patch, name)) for name in names}
    fitted = replace(patch, **renamed)
    traces = {place.name: place.trace for place in found.values() if place.trace is not None}
    if not traces:
        return fitted
    fitted = replace(
        fitted,
        edited={name: trace.edited for name, trace in traces.items()},
        missed={name: trace.missed for name, trace in traces.items() if len(trace.missed.indices)},
        norms={name: trace.norm for name, trace in traces.items() if trace.norm is not None},
    )
    if not cast:
        return fitted
    return replace(
        fitted,
        base={name: trace.base for name, trace in traces.items()},
        casts={name: cast_sha256(checkpoint.matrix(name)) for name in traces},
    )


def _find_base(checkpoint: Checkpoint, patch: Patch, ours: WeightId, theirs: WeightId, cast: bool) -> Found:
    """Trace the edit of a tensor; refuse one that is not what the patch was made for. Raises BadInput."""
    _check_shape(checkpoint, patch, ours, theirs)
    found = trace(checkpoint, theirs, patch.changes[ours])
    if found.base == patch.base[ours]:
        return Found(theirs, found)
    matrix = checkpoint.matrix(theirs)
    if _is_base(matrix, found.base, patch, ours, cast):
        return Found(theirs, found)
    if found.base == patch.edited.get(ours) or _holds(checkpoint, patch, ours, theirs, cast):
        raise BadInput(f"{checkpoint.path}: this patch is already applied ({theirs}); `uwm revert` undoes it")
    if not cast and _is_base(matrix, found.base, patch, ours, cast=True):
        made_for = next((d for d, sha in patch.casts.get(ours, {}).items() if sha == patch.base[ours]), "another dtype")
        raise BadInput(
            f"{checkpoint.path}: {theirs} is the weight this patch was made for, stored as {_name(matrix)} instead of "
            f"{made_for}; pass --cast to apply it all the same"
        )
    raise BadInput(
        f"{checkpoint.path}: {theirs} differs from the weight this patch was made for; score this model anew"
    )


def _find_edited(checkpoint: Checkpoint, patch: Patch, ours: WeightId, theirs: WeightId, cast: bool) -> Found:
    """Refuse a tensor that does not hold the patch. Raises BadInput."""
    _check_shape(checkpoint, patch, ours, theirs)
    if not _holds(checkpoint, patch, ours, theirs, cast):
        raise BadInput(f"{checkpoint.path}: {theirs} does not hold this patch, so it cannot be reverted")
    return Found(theirs)


def _holds(checkpoint: Checkpoint, patch: Patch, ours: WeightId, theirs: WeightId, cast: bool) -> bool:
    """Whether a tensor is the patch's base with the patch applied: undone it is the base, redone itself."""
    undo, change = patch.undo(ours), patch.changes[ours]
    if undo is None:
        return False
    digest, dtype, first = hashlib.sha256(), checkpoint.info(theirs).dtype, 0
    for bits in checkpoint.chunks(theirs):
        undone = bits.copy()
        undo.change(undone, dtype, first)
        digest.update(undone.data)
        change.change(undone, dtype, first)
        if not np.array_equal(undone, bits):
            return False
        first += len(bits)
    if digest.hexdigest() == patch.base[ours]:
        return True
    if not cast:
        return False
    stored = checkpoint.matrix_bits(theirs)
    undone = stored.array.copy()
    undo.change(undone.reshape(-1), dtype)
    return _is_base(Bits(dtype, undone).torch(), digest.hexdigest(), patch, ours, cast)


def _is_base(matrix: torch.Tensor, sha256: str, patch: Patch, ours: WeightId, cast: bool) -> bool:
    """Whether a tensor of this hash is the patch's base, or (`cast`) the base rounded, or rounds to the base."""
    if sha256 == patch.base[ours]:
        return True
    if not cast or not matrix.is_floating_point():
        return False
    import torch

    casts = patch.casts.get(ours, {})
    made_for = next((dtype for dtype, sha in casts.items() if sha == patch.base[ours]), _name(matrix))
    narrowed = matrix.to(getattr(torch, made_for))
    return casts.get(_name(matrix)) == sha256 or matrix_sha256(narrowed) == patch.base[ours]


def _name(matrix: torch.Tensor) -> str:
    return str(matrix.dtype).removeprefix("torch.")


def _check_shape(checkpoint: Checkpoint, patch: Patch, ours: WeightId, theirs: WeightId) -> None:
    if theirs not in checkpoint.tensors:
        raise BadInput(f"{checkpoint.path}: the patch edits {ours}, which this checkpoint does not have")
    info = checkpoint.info(theirs)
    if info.shape != patch.shapes[ours]:
        raise BadInput(
            f"{checkpoint.path}: {theirs} is {list(info.shape)}, the patch was made for {list(patch.shapes[ours])}"
        )
    if info.dtype.kind != "float" or info.dtype.itemsize < 2:
        raise BadInput(f"{checkpoint.path}: {theirs} is {info.dtype.name}, quantised; edit the float checkpoint first")
