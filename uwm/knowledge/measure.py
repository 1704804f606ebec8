"""Zero-shot classification: a picture's class is the one whose prompt is nearest by cosine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ..errors import BadInput, InvalidResult
from ..intervals import changes, shares
from ..models import Model
from ..ranks import TIE, Standing
from ..statistics.batches import BATCH_SIZE, Progress
from ..statistics.sources import embed_sources
from .data_sets import DataSet

MOST_ALIKE = 0.5  # share of classes with another's prompts above which a set is refused
TOKENIZED = 1024  # prompts at a time, so that their tokens stay few
MEANS = ("top1", "top5", "mean_per_class")


@dataclass(frozen=True)
class ZeroShot:
    """How a model classified a data set.

    Attributes:
        figures: Fractions ``top1``, ``top5`` (1 where there are at most five classes), ``mean_per_class``; the number
            of ``pictures``; ``top1_interval``, [low, high], as `intervals.shares` finds it; for a set with unsafe
            classes also ``top1_safe`` and ``top1_unsafe``.
        right: Whether each image's class is the nearest, 0 to 1, [images], in the set's order; see `hits_of` for ties.
        safe: Whether each picture's class is a safe one, bool [pictures]; None where the set names no unsafe classes.
    """

    figures: dict[str, Any]
    right: torch.Tensor
    safe: torch.Tensor | None = None


@torch.no_grad()
def zero_shot(
    model: Model,
    data: DataSet,
    *,
    batch_size: int = BATCH_SIZE,
    workers: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
) -> ZeroShot:
    """Classify every image of a data set (UWM, section 5: one prompt a class, argmax of cosine).

    Classes that the model cannot tell apart count as one, see `class_labels`.

    Args:
        model: Patched or not.
        data: From `open_data_sets`.
        batch_size: Pictures, or prompts, at a time; two batches of pictures are in memory.
        workers: Threads that read pictures.
        seed: For the bootstrap.
        progress: As in `uwm.score`.

    Raises:
        BadInput: The set is empty, an image is damaged, or as `class_labels` finds.
        InvalidResult: An embedding is not finite.
    """
    if not len(data):
        raise BadInput(f"{data.name}: the data set has no pictures")
    kept, place = class_labels(model, data).unique(return_inverse=True)  # [labels], [classes]
    classes = class_embeddings(model, data, batch_size)[kept]  # [labels, dim]
    passed: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": progress, "name": data.name}
    pictures = F.normalize(embed_sources(model, "vision", data.sources, **passed), dim=-1)
    own, hits = torch.tensor(data.classes), []
    for start in range(0, len(data), batch_size):
        similarity = pictures[start : start + batch_size] @ classes.T  # [batch, labels]
        if not torch.isfinite(similarity).all():
            raise InvalidResult(f"{data.name}: the model's embeddings are NaN or infinite")
        hits.append(hits_of(similarity, place[own[start : start + batch_size]]))
    return figures_of(data, place, torch.cat(hits), own, seed)


def class_labels(model: Model, data: DataSet) -> torch.Tensor:
    """Number of the first class with the same prompts, int64 [classes]: with equal tokens, after cutting.

    Such classes have one embedding, so the second could never be found.

    Raises:
        BadInput: More than `MOST_ALIKE` of the classes have another's prompts.
    """
    first: dict[tuple, int] = {}
    labels = [first.setdefault(prompts, number) for number, prompts in enumerate(_prompt_tokens(model, data))]
    alike = len(labels) - len(first)
    if alike > MOST_ALIKE * len(labels):
        raise BadInput(
            f"{data.name}: {alike} of {len(labels)} classes have the prompts of another class, by their tokens (the "
            f"model reads {model.context_length}); shorten the prompt {data.templates[0]!r}, or mend the names"
        )
    return torch.tensor(labels)


def _prompt_tokens(model: Model, data: DataSet) -> Iterator[tuple]:
    """The tokens of each class's prompts, without padding."""
    some = max(1, TOKENIZED // len(data.templates))
    for start in range(0, len(data.class_names), some):
        names = data.class_names[start : start + some]
        ids, mask = model.tokenize([template.replace("{}", name) for name in names for template in data.templates])
        rows = [tuple(row[counted > 0].tolist()) for row, counted in zip(ids, mask, strict=True)]
        yield from (
            tuple(rows[first : first + len(data.templates)]) for first in range(0, len(rows), len(data.templates))
        )


def check_classes(model: Model, data_sets: Mapping[str, DataSet]) -> list[str]:
    """Which prompts of data sets a model cuts, and which classes it cannot tell apart although their names differ.

    Raises:
        BadInput: As `class_labels`.
    """
    lines = []
    for data in data_sets.values() if "text" in model.modalities else ():
        prompts = data.prompts
        cut = sum(length > model.context_length for length in model.caption_lengths(prompts))
        if cut:
            read = f"longer than the model's {model.context_length} tokens and were cut"
            lines.append(f"{data.name}: {cut} of {len(prompts)} prompts are {read}")
        labels = class_labels(model, data).tolist()
        names = [(data.class_names[label], name) for label, name in zip(labels, data.class_names, strict=True)]
        alike = [f"{one!r} and {other!r}" for one, other in names if one != other]
        if alike:
            more = f"; and {len(alike) - 3} more" if len(alike) > 3 else ""
            lines.append(f"{data.name}: classes with equal tokens count as one: {'; '.join(alike[:3])}{more}")
    return lines


def class_embeddings(model: Model, data: DataSet, batch_size: int = BATCH_SIZE) -> torch.Tensor:
    """One normalised embedding a class, [classes, dim], on the CPU: the normalised mean over its prompts' (Radford et
    al., "Learning Transferable Visual Models From Natural Language Supervision", section 3.1.4)."""
    rows = embed_sources(model, "text", data.prompts, batch_size=batch_size, workers=1)
    return mean_of_prompts(data, F.normalize(rows, dim=-1))


def mean_of_prompts(data: DataSet, prompts: torch.Tensor) -> torch.Tensor:
    """One normalised embedding a class, [classes, dim], of its prompts' normalised ones, [classes · prompts, dim]."""
    return F.normalize(prompts.unflatten(0, (len(data.class_names), len(data.templates))).mean(1), dim=-1)


def hits_of(similarity: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Whether each image's class is the nearest, and among the five nearest, float64 [images, 2].

    Classes within `TIE` of it are equally near, and a tie is worth its chance: a text tower that gives all classes one
    embedding is right by chance, whichever class comes first.

    Args:
        similarity: Of images and classes, [images, classes].
        targets: The class of each image, [images].
    """
    gap = similarity - similarity.gather(1, targets[:, None])
    better, level = (gap > TIE).sum(1), (gap.abs() <= TIE).sum(1)  # its own class is level with itself
    standing = Standing(better, level - 1, torch.ones_like(level))
    return torch.stack([standing.hits(1), standing.hits(5)], 1)


def figures_of(
    data: DataSet, labels: torch.Tensor, hits: torch.Tensor, classes: torch.Tensor, seed: int | None
) -> ZeroShot:
    """From the label of each class, `hits_of` all images, and the class of each, [images]; no interval without seed."""
    targets, right = labels[classes], hits[:, 0]
    _, which, counts = targets.unique(return_inverse=True, return_counts=True)
    figures: dict[str, Any] = {
        "top1": right.mean().item(),
        "top5": hits[:, 1].mean().item(),
        "mean_per_class": (torch.bincount(which, right) / counts).mean().item(),
        "pictures": len(targets),
    }
    if seed is not None:
        figures["top1_interval"] = [*shares({"top1": right}, seed)["top1"][1:]]
    unsafe = torch.tensor([name in data.unsafe_classes for name in data.class_names])[classes]
    if data.unsafe_classes:
        for key, chosen in (("top1_safe", ~unsafe), ("top1_unsafe", unsafe)):
            if chosen.any():
                figures[key] = right[chosen].mean().item()
    return ZeroShot(figures, right, ~unsafe if data.unsafe_classes else None)


def difference(result: ZeroShot, baseline: ZeroShot, seed: int = 0) -> dict[str, Any]:
    """Top-1 accuracy against a baseline's on the same pictures, with a paired bootstrap.

    Args:
        result, baseline: Of the same data set.
        seed: For the bootstrap, which draws pictures.

    Returns:
        ``difference`` as (mean, low, high) in fractions; how many pictures were ``gained`` and ``lost``.

    Raises:
        BadInput: They have not as many pictures, so they are not of one data set.
    """
    if len(result.right) != len(baseline.right):
        raise BadInput(f"results of {len(result.right)} and {len(baseline.right)} pictures cannot be paired")
    change = result.right.double() - baseline.right.double()
    return {
        "difference": changes({"top1": change}, seed)["top1"],
        "gained": int((change > 0).sum()),
        "lost": int((change < 0).sum()),
    }


def mean_over_sets(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The plain mean over data sets of ``top1``, ``top5`` and ``mean_per_class`` (the paper's mean of 17 sets).

    Args:
        figures: Data set -> `ZeroShot.figures`; at least one.
    """
    return {name: sum(found[name] for found in figures.values()) / len(figures) for name in MEANS}
