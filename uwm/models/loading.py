"""From a model reference to a `Model` on a device."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch

from ..checkpoint import Checkpoint, open_checkpoint
from ..errors import BadInput, ResourceFault
from ..layouts import FILE_NAMES
from ..outputs import MANIFEST
from .bare import open_bare
from .base import Model
from .beside import beside, refuse_unlike
from .filling import refuse_nonfinite
from .hub import network
from .hugging_face import open_folder
from .open_clip_models import OpenClipModel
from .references import resolve
from .registry import registered

CONFIGS = ("config.json", "open_clip_config.json", "model_index.json", "modules.json")


def load(
    reference: str | Path,
    *,
    arch: str | None = None,
    quick_gelu: bool | None = None,
    preprocess: str | None = None,
    key: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    cache_dir: str | None = None,
    offline: bool = False,
    reads: Collection[str] = (),
) -> Model:
    """Open a model.

    Args:
        reference: A path, ``"demo"``, ``open_clip:ARCH/TAG`` or a repository on the Hub; see
            `uwm.models.references.resolve`, also for `revision`, `cache_dir` and `offline`.
        arch: open_clip's name of the architecture, for bare weights.
        quick_gelu: The activation, where neither folder, archive nor `arch` decides it.
        preprocess: How images are prepared, where bare weights' architecture does not decide it: a tag of open_clip's
            registry, or a JSON file of its ``preprocess_cfg``.
        key: Which entry of a training checkpoint holds the weights, where there are several.
        device: ``auto``, ``cpu``, ``cuda[:N]`` or ``mps``.
        dtype: ``auto`` (float32), ``float32``, ``bfloat16`` or ``float16``: what the model computes in.
        reads: What will be read with it, ``text`` or ``vision``: a CLIP's folder whose tokenizer or image preprocessor
            cannot be used is refused before its weights are read.

    Raises:
        BadInput: Not found, damaged, not CLIP-like, or activation or preprocessing is not known or contradicted.
        Refused: A pickle that asks for more than tensors.
        ResourceFault: The device is not there.
    """
    target, computed_in = device_of(device), dtype_of(dtype)
    place = resolve(reference, revision=revision, cache_dir=cache_dir, offline=offline)
    checkpoint = open_checkpoint(_bare_file(place), key)
    refuse_unlike(checkpoint)
    _refuse_nonfinite(checkpoint)
    arch, quick_gelu, preprocess = _of_bare(str(reference), checkpoint, arch, quick_gelu, preprocess)
    with network(allowed=not offline):
        model = _built(checkpoint, arch, quick_gelu, preprocess, reads)
    model.offline, model.cache_dir = offline, cache_dir
    model.notes += beside(checkpoint)
    if quick_gelu is not None and quick_gelu != model.quick_gelu:
        raise BadInput(f"{checkpoint.path}: its config says quick_gelu {model.quick_gelu}; drop the flag")
    model.module.to(device=target, dtype=computed_in).requires_grad_(False)
    return model


def _built(
    checkpoint: Checkpoint, arch: str | None, quick_gelu: bool | None, preprocess: str | None, reads: Collection[str]
) -> Model:
    if checkpoint.layout.library == "open_clip":
        return OpenClipModel.open(checkpoint, arch, quick_gelu, preprocess)
    if checkpoint.path.is_dir():
        return open_folder(checkpoint, reads)
    return open_bare(checkpoint, arch, quick_gelu, preprocess)


def _of_bare(
    reference: str, checkpoint: Checkpoint, arch: str | None, quick_gelu: bool | None, preprocess: str | None
) -> tuple[str | None, bool | None, str | None]:
    """Architecture, activation and preprocessing of bare weights, by open_clip's registry where it names them.

    Raises:
        BadInput: They are said although the reference, or the folder, decides them.
    """
    if (found := registered(reference)) is not None:
        if arch not in (None, found.arch) or quick_gelu not in (None, found.quick_gelu) or preprocess is not None:
            raise BadInput(
                f"{reference}: decides the architecture and its activation; drop --arch and --quick-gelu, and "
                "--preprocess too"
            )
        return found.arch, found.quick_gelu, found.tag
    for flag, given in (("--arch", arch), ("--preprocess", preprocess)):
        if given is not None and checkpoint.path.is_dir():
            raise BadInput(f"{checkpoint.path}: {flag} is for bare weights, and this folder says it itself; drop it")
    return arch, quick_gelu, preprocess


def _bare_file(path: Path) -> Path:
    """The weights in a folder that `uwm apply` made of bare weights, which has no config either; else the path."""
    if not (path / MANIFEST).is_file() or any((path / name).is_file() for name in CONFIGS):
        return path
    found = [path / name for name in FILE_NAMES.values() if (path / name).is_file()]
    return found[0] if len(found) == 1 else path


def _refuse_nonfinite(checkpoint: Checkpoint) -> None:
    for weight in checkpoint.weights:
        matrix = checkpoint.matrix(weight)
        if not matrix.dtype.is_floating_point or matrix.dtype.itemsize < 2:
            raise BadInput(f"{checkpoint.path}: {weight} is {matrix.dtype}, quantised; edit the float checkpoint first")
        refuse_nonfinite(checkpoint, weight, matrix)


def device_of(name: str) -> torch.device:
    """The device of a flag. Raises BadInput for no such name, ResourceFault where it is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInput(f"--device {name!r}: expected auto, cpu, cuda, cuda:N or mps") from None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False) or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        raise ResourceFault(f"--device {name}: not available on this machine; try --device cpu")
    return device


def dtype_of(name: str) -> torch.dtype:
    """What a flag says a model computes in. Raises BadInput for no such name."""
    known = {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise BadInput(f"--dtype {name!r}: expected one of {', '.join(known)}")
    return known[name]
