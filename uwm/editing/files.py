"""From file to file: apply a patch, revert it, compare two checkpoints. No model library is needed.

A patch names weights by their canonical names, so it fits every spelling of the same weights. Where a checkpoint
numbers its towers otherwise (the second text encoder of Stable Diffusion XL), the tower whose matrices are the patch's
base is taken.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..checkpoint import Checkpoint, Edit, check_output, new_folder, open_checkpoint, write_edited
from ..checkpoint.dtypes import Bits
from ..checkpoint.reader import cast_sha256, matrix_sha256
from ..errors import BadInput
from ..manifest import FORMAT, Manifest, write_manifest
from ..models.references import resolve
from ..version import __version__
from ..weights import WeightId
from .patch import PATCH_FILE, Patch, StoredTensors

if TYPE_CHECKING:
    import torch

HASHERS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class Rewritten:
    """What was written: sha256 of every weight file by name, the patch as it fits this file, and towers left out."""

    hashes: dict[str, str]
    patch: Patch
    left_out: tuple[str, ...]


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
    check_output(output, [checkpoint.path], overwrite)
    fitted, left_out = fit(checkpoint, patch, cast=cast)
    with new_folder(output) as folder:
        hashes = write_patched(checkpoint, fitted, folder)
        _write_manifest(folder, "apply", fitted, hashes)
    return Rewritten(hashes, fitted, left_out)


def write_patched(checkpoint: Checkpoint, patch: Patch, folder: Path) -> dict[str, str]:
    """Write the edited weights, the side files and the patch itself into an existing folder."""
    edits = {weight: Edit(indices, patch.alpha) for weight, indices in patch.indices().items()}
    hashes = write_edited(checkpoint, edits, folder)
    keys = {checkpoint.weights[weight].key for weight in patch.flips}
    tied = {key: others for key, others in checkpoint.aliases.items() if key in keys}
    with_originals(checkpoint, replace(patch, aliases=tied)).save(folder / PATCH_FILE)
    return hashes


def with_originals(checkpoint: Checkpoint, patch: Patch) -> Patch:
    """The patch, able to be undone: where α is not −1 it takes along the values that it replaces."""
    if patch.alpha == -1.0:
        return patch
    stored = {w: (checkpoint.matrix_bits(w), indices) for w, indices in patch.indices().items()}
    values = {w: Bits(matrix.dtype, matrix.array.reshape(-1)[indices]) for w, (matrix, indices) in stored.items()}
    return replace(patch, originals=StoredTensors(values))


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

    Arguments and result as `apply`; where α is not −1, the patch must be the one that `apply` wrote.

    Raises:
        BadInput: The checkpoint does not hold this patch. InvalidResult, ResourceFault: as `apply`.
    """
    output = Path(output)
    checkpoint = open_checkpoint(resolve(reference), key)
    check_output(output, [checkpoint.path], overwrite)
    fitted, left_out = fit(checkpoint, patch, cast=cast, edited=True)
    with new_folder(output) as folder:
        values = fitted.replaced()
        edits = {w: Edit(indices, fitted.alpha, values.get(w)) for w, indices in fitted.indices().items()}
        hashes = write_edited(checkpoint, edits, folder, patch.aliases)
        _write_manifest(folder, "revert", fitted, hashes)
    return Rewritten(hashes, fitted, left_out)


def _write_manifest(folder: Path, verb: str, patch: Patch, hashes: dict[str, str]) -> None:
    """A short uwm.json: what was done, with which patch, and what came out."""
    recipe = dict(patch.recipe)
    write_manifest(folder, Manifest(format=FORMAT, output_sha256=hashes, patch=recipe, uwm=__version__, verb=verb))


# ---------------------------------------------------------------- whether a patch fits


def fit(
    checkpoint: Checkpoint, patch: Patch, *, cast: bool = False, edited: bool = False
) -> tuple[Patch, tuple[str, ...]]:
    """The patch as this checkpoint names and stores its weights, and the patch's towers that it does not have.

    Args:
        checkpoint: The base of the patch, or (`edited`) what it was applied to.
        patch: Of any spelling of the same weights.
        cast: Also accept the base cast to another dtype.

    Raises:
        BadInput: The matrices are others; the message says which and why.
    """
    if edited and patch.alpha != -1.0 and patch.originals.keys() != patch.flips.keys():
        raise BadInput(f"a patch with alpha {patch.alpha} is undone with the {PATCH_FILE} that `uwm apply` wrote")
    check = _check_edited if edited else _check_base
    names: dict[WeightId, WeightId] = {}
    left_out = []
    for tower in sorted({weight.tower for weight in patch.flips}):
        weights = [weight for weight in patch.flips if weight.tower == tower]
        if any(there.modality == weights[0].modality for there in checkpoint.weights):
            names |= _fit_tower(
                checkpoint, patch, weights, lambda ours, theirs: check(checkpoint, patch, ours, theirs, cast)
            )
        else:
            left_out.append(tower)
    if not names:
        raise BadInput(f"{checkpoint.path}: the patch edits {', '.join(left_out)}, which this checkpoint does not have")
    return _renamed(checkpoint, patch, names, edited, cast), tuple(left_out)


def _fit_tower(
    checkpoint: Checkpoint, patch: Patch, weights: list[WeightId], check: Callable[[WeightId, WeightId], None]
) -> dict[WeightId, WeightId]:
    """The patch's weights of one tower -> the checkpoint's, of the first tower that passes the check."""
    there = sorted({w.tower for w in checkpoint.weights if w.modality == weights[0].modality})
    there.sort(key=lambda tower: tower != weights[0].tower)  # its namesake first
    failure: BadInput | None = None
    for tower in there:
        names = {weight: replace(weight, tower=tower) for weight in weights}
        pool = ThreadPoolExecutor(HASHERS)
        try:
            for checked in [pool.submit(check, ours, theirs) for ours, theirs in names.items()]:
                checked.result()
        except BadInput as error:
            failure = failure or error
        else:
            return names
        finally:
            pool.shutdown(cancel_futures=True)
    assert failure is not None
    raise failure


def _renamed(checkpoint: Checkpoint, patch: Patch, names: dict[WeightId, WeightId], edited: bool, cast: bool) -> Patch:
    """The patch under the checkpoint's own names, with the fingerprints of the matrices that it really has."""
    flips, values = patch.indices(), patch.replaced()
    originals = {theirs: values[ours] for ours, theirs in names.items() if ours in values}
    fitted = replace(
        patch,
        flips=StoredTensors(
            {theirs: Bits.of(flips[ours]) for ours, theirs in sorted(names.items(), key=lambda pair: pair[1])}
        ),
        shapes={theirs: patch.shapes[ours] for ours, theirs in names.items()},
        base={theirs: patch.base[ours] for ours, theirs in names.items()},
        casts={theirs: patch.casts.get(ours, {}) for ours, theirs in names.items()},
        originals=StoredTensors(originals),
    )
    if edited or not cast:
        return fitted
    return replace(
        fitted,
        base={theirs: checkpoint.fingerprint(theirs) for theirs in names.values()},
        casts={theirs: cast_sha256(checkpoint.matrix(theirs)) for theirs in names.values()},
    )


def _check_base(checkpoint: Checkpoint, patch: Patch, ours: WeightId, theirs: WeightId, cast: bool) -> None:
    """Refuse a weight that is not the one the patch was made for. Raises BadInput."""
    _check_shape(checkpoint, patch, ours, theirs)
    if checkpoint.fingerprint(theirs) == patch.base[ours]:
        return
    matrix = checkpoint.matrix(theirs)
    if _is_base(matrix, patch, ours, cast):
        return
    if patch.alpha == -1.0 and _is_base(_undone(matrix, patch, ours), patch, ours, cast):
        raise BadInput(f"{checkpoint.path}: this patch is already applied ({theirs}); `uwm revert` undoes it")
    if not cast and _is_base(matrix, patch, ours, cast=True):
        made_for = next((d for d, sha in patch.casts.get(ours, {}).items() if sha == patch.base[ours]), "another dtype")
        raise BadInput(
            f"{checkpoint.path}: {theirs} is the weight this patch was made for, stored as {_name(matrix)} instead of "
            f"{made_for}; pass --cast to apply it all the same"
        )
    raise BadInput(
        f"{checkpoint.path}: {theirs} differs from the weight this patch was made for; score this model anew"
    )


def _check_edited(checkpoint: Checkpoint, patch: Patch, ours: WeightId, theirs: WeightId, cast: bool) -> None:
    """Refuse a weight that does not hold the patch. Raises BadInput."""
    _check_shape(checkpoint, patch, ours, theirs)
    if patch.alpha == -1.0 and _negated_sha256(checkpoint, theirs, patch.indices()[ours]) == patch.base[ours]:
        return  # negating twice changes nothing, so the patch is in it
    matrix = checkpoint.matrix(theirs)
    undone = _undone(matrix, patch, ours)
    redone = Edit(patch.indices()[ours], patch.alpha).apply(undone.clone().flatten())
    if not _is_base(undone, patch, ours, cast) or matrix_sha256(redone) != matrix_sha256(matrix):
        raise BadInput(f"{checkpoint.path}: {theirs} does not hold this patch, so it cannot be reverted")


def _negated_sha256(checkpoint: Checkpoint, weight: WeightId, indices: np.ndarray) -> str:
    """sha256 of a weight with these entries negated."""
    digest, edit, first = hashlib.sha256(), Edit(indices), 0
    dtype = checkpoint.info(weight).dtype
    for bits in checkpoint.chunks(weight):
        edit.change(bits, dtype, first)
        first += len(bits)
        digest.update(bits.data)
    return digest.hexdigest()


def _is_base(matrix: torch.Tensor, patch: Patch, weight: WeightId, cast: bool) -> bool:
    """Whether a matrix is the patch's base, or (`cast`) the base rounded to its dtype, or rounds to the base."""
    casts = patch.casts.get(weight, {})
    if matrix_sha256(matrix) == patch.base[weight]:
        return True
    if not cast or not matrix.is_floating_point():
        return False
    import torch

    made_for = next((dtype for dtype, sha in casts.items() if sha == patch.base[weight]), _name(matrix))
    narrowed = matrix.to(getattr(torch, made_for))
    return casts.get(_name(matrix)) == matrix_sha256(matrix) or matrix_sha256(narrowed) == patch.base[weight]


def _name(matrix: torch.Tensor) -> str:
    return str(matrix.dtype).removeprefix("torch.")


def _undone(matrix: torch.Tensor, patch: Patch, weight: WeightId) -> torch.Tensor:
    edit = Edit(patch.indices()[weight], patch.alpha, patch.replaced().get(weight))
    return edit.apply(matrix.clone().flatten())


def _check_shape(checkpoint: Checkpoint, patch: Patch, ours: WeightId, theirs: WeightId) -> None:
    if theirs not in checkpoint.weights:
        raise BadInput(f"{checkpoint.path}: the patch edits {ours}, which this checkpoint does not have")
    shape = checkpoint.info(theirs).shape
    if shape != patch.shapes[ours]:
        raise BadInput(
            f"{checkpoint.path}: {theirs} is {list(shape)}, the patch was made for {list(patch.shapes[ours])}"
        )
