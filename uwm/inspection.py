"""What a file of ours, a checkpoint or a calibration set holds, and what this machine has."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import records
from .checkpoint import open_checkpoint
from .editing.patch import PATCH_FILE, Patch
from .models.references import resolve
from .text_tables import text_facts

if TYPE_CHECKING:
    from .calibration import CalibrationSet
    from .editing.entries.scores import Scores
    from .models import Model
    from .statistics.batches import Progress

PACKAGES = ("uwm", "torch", "torchvision", "transformers", "open_clip_torch", "safetensors", "huggingface_hub", "numpy", "pillow")  # fmt: skip  # noqa: E501


def inspect(reference: str | Path, key: str | None = None) -> tuple[dict[str, Any], list[list[str]]]:
    """Describe a patch, a scores file or a checkpoint (`key`: which entry of a training checkpoint).

    Returns:
        Its properties, and a table of its weights with a heading row.

    Raises:
        BadInput: It is none of them.
    """
    path = resolve(reference)
    about = records.describe(path) if path.is_file() else None
    if about is not None and about["kind"] == "patch":
        return _patch(Patch.load(path))
    if about is not None and about["kind"] == "scores":
        from .editing.entries.scores import Scores

        return _scores(Scores.load(path))
    return _checkpoint(path, key)


def _patch(patch: Patch) -> tuple[dict[str, Any], list[list[str]]]:
    told = patch.summaries()
    about = {"kind": "patch", "entries": sum(s.entries for s in told.values()), "recipe": patch.recipe}
    body = [
        [str(n), s.words, f"{s.entries}", f"{patch.shapes[n]}", patch.base[n][:16], patch.edited.get(n, "")[:16]]
        for n, s in told.items()
    ]
    return about, [["tensor", "change", "entries", "shape", "base sha256", "edited sha256"], *body]


def _scores(scores: Scores) -> tuple[dict[str, Any], list[list[str]]]:
    body = [[f"{w}", f"{tuple(t.shape)}", f"{t.mean():.4g}", f"{t.max():.4g}"] for w, t in scores.items()]
    about = {"kind": "scores", "recipe": scores.recipe}
    return about, [["weight", "shape", "mean", "max"], *body]


def _checkpoint(path: Path, key: str | None) -> tuple[dict[str, Any], list[list[str]]]:
    checkpoint = open_checkpoint(path, key)
    infos = {name: info for name, (_, info) in checkpoint.entries.items()}
    about = {
        "kind": "checkpoint",
        "layout": checkpoint.layout.name,
        "files": [file.name for file in checkpoint.files],
        "tensors": len(infos),
        "edited by uwm": path.is_dir() and (path / PATCH_FILE).is_file(),
    }
    body = [
        [f"{w}", ref.key, f"{infos[ref.key].shape}", infos[ref.key].dtype.name] for w, ref in checkpoint.weights.items()
    ]
    return about, [["weight", "tensor", "tensor's shape", "dtype"], *body]


def inspect_set(
    reference: str | Path,
    *,
    model: str | None = None,
    split: str | None = None,
    safe_images: str | None = None,
    unsafe_images: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    mass: float = 0.02,
    batch_size: int = 64,
    workers: int = 2,
    progress: Progress | None = None,
    **opening: Any,
) -> tuple[dict[str, Any], list[str]]:
    """Describe a calibration set: counts, and everything inconsistent in it.

    Args:
        reference, split, safe_images, unsafe_images: As in `uwm.read_calibration`.
        model: With it, also the captions that it cuts, the pairs that are equal for it, and those whose labels it
            doubts, unless there are bad images.
        limit, seed: At most this many pairs, drawn with the seed.
        mass, batch_size, workers, progress: As in `uwm.label_noise.report`.
        opening: As in `uwm.load`.

    Returns:
        Its properties, with ``warnings`` by kind, ``label_noise``, and ``refused``, why `uwm edit` refuses the set,
        where it does; and the same but the last in lines.
    """
    from .calibration import check, read_calibration, signal
    from .models import load

    pairs = read_calibration(reference, split=split, safe_images=safe_images, unsafe_images=unsafe_images)
    found = check(pairs := pairs.limit(limit, seed))
    opened = None if model is None or found["warnings"]["bad_images"] else load(model, **opening)
    reaching = signal(opened, pairs)
    listed = {**found["warnings"], **reaching.as_dict()}
    found["warnings"] = {name: items for name, items in listed.items() if items}
    found["not_run"] = _not_run(pairs, opened)
    lines = [f"{tower} tower would NOT be edited: {why}" for tower, why in _halves(pairs, opened)] + _lines(found)
    if opened is not None:
        from .label_noise import describe, report

        shared: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "seed": seed, "progress": progress}
        found["label_noise"] = report(opened, pairs, mass=mass, **shared)
        lines += describe(found["label_noise"])
    elif not found["warnings"]:
        lines.append("nothing inconsistent found" + (" by the checks that ran" if found["not_run"] else ""))
    found |= {"refused": reason} if (reason := reaching.refusal(("text", "vision"))) else {}
    return found, lines


def _lines(found: dict[str, Any]) -> list[str]:
    """Counts, checks that did not run, and warnings, a line each."""
    lines = [text_facts({key: value for key, value in found.items() if key not in ("warnings", "not_run")})]
    lines += [f"not run: {what}: {why}" for what, why in found["not_run"].items()]
    warned = found["warnings"].items()
    return lines + [f"warning: {len(items)} {name.replace('_', ' ')}: {'; '.join(items[:5])}" for name, items in warned]


def _halves(pairs: CalibrationSet, model: Model | None) -> Iterator[tuple[str, str]]:
    """The towers that no pair serves, and why; of a model those that it has."""
    from .calibration.lacking import lacking

    for tower in ("text", "vision") if model is None else model.modalities:
        if why := lacking(pairs, tower):
            yield tower, why


def _not_run(pairs: CalibrationSet, model: Model | None) -> dict[str, str]:
    """Checks that could not run, and why."""
    from .calibration.lacking import lacking

    checks = {"text": "duplicate, identical and shared captions", "vision": "bad, identical and shared images"}
    found = {what: why for tower, what in checks.items() if (why := lacking(pairs, tower))}
    return found if model else {**found, "captions that are cut, and wrong labels": "they need --model MODEL"}


def environment() -> dict[str, Any]:
    """Versions and devices."""
    import torch

    found: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    cuda = torch.cuda.is_available()
    found["cuda devices"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
    found["mps"] = torch.backends.mps.is_available()
    found["threads"] = torch.get_num_threads()
    return found
