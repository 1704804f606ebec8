"""A model on held-out pairs: SafeGround and retrieval with intervals, zero-shot accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
import torch.nn.functional as F

from .cache import EmbeddingCache, embedding_key
from .calibration import CalibrationSet
from .errors import BadInput, InvalidResult
from .figures import TOP1, TOP1_SAFE
from .knowledge import DataSet, ZeroShot, difference, zero_shot
from .metrics import bootstrap, histograms, own_similarities, retrieval_samples, safeground_samples, shares
from .models import Model
from .statistics.batches import BATCH_SIZE, Progress, count_batches, embed_inputs, pair_batches

IN_MEMORY = ("samples", "right", "safe")  # fields of an EvalResult that are not written


@dataclass(frozen=True)
class Embeddings:
    """Normalised embeddings of a set's quadruples, float32 [n, dim] each, on the CPU, row for row."""

    safe_text: torch.Tensor
    unsafe_text: torch.Tensor
    safe_image: torch.Tensor
    unsafe_image: torch.Tensor


@dataclass(frozen=True)
class EvalResult:
    """Figures with intervals.

    Attributes:
        pairs: The number of quadruples.
        figures: Name -> (mean, low, high), fractions with 95 % intervals of `metrics.shares`; the names are
            `figures.PAIRED`.
        zero_shot: Data set -> `uwm.knowledge.ZeroShot.figures`.
        by_concept: Concept -> the same figures over its queries (candidates are the whole set's); empty where the set
            has no concepts.
        concept_pairs: Concept -> how many quadruples it has.
        similarities: ``ts``, ``tu``, ``vs``, ``vu`` -> ``safe``, ``unsafe`` -> histogram of the cosine of such a query
            with its own safe and unsafe item: counts in 100 equal bins from −1 to 1.
        samples: Name -> bool [n], what the figures are means of; kept in memory only.
        right: Data set -> whether each image was classified correctly, bool [images]; in memory only.
        safe: Data set that names unsafe classes -> which images are of safe ones, bool [images]; in memory only.
    """

    pairs: int
    figures: dict[str, tuple[float, float, float]]
    zero_shot: dict[str, dict[str, Any]]
    by_concept: dict[str, dict[str, tuple[float, float, float]]] = field(default_factory=dict)
    concept_pairs: dict[str, int] = field(default_factory=dict)
    similarities: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    samples: dict[str, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)
    right: dict[str, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)
    safe: dict[str, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: everything but what is kept in memory only."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in IN_MEMORY}


def differences(result: EvalResult, baseline: EvalResult, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Paired differences to a baseline, query by query.

    Args:
        result, baseline: Measured on the same pairs, with their samples.
        seed: For the bootstrap.

    Returns:
        Figure -> ``difference``: (mean, low, high), result − baseline, with a paired bootstrap 95 % interval;
        ``gained`` and ``lost``: queries for which it holds now and did not before, and the other way round. Zero-shot
        accuracy is there as ``top1:DATASET``, by image, and as ``top1_safe:DATASET`` over safe classes alone where
        the data set names unsafe ones.

    Raises:
        BadInput: They are not of the same pairs, or were read back without samples.
    """
    if result.pairs != baseline.pairs or not result.samples or result.samples.keys() != baseline.samples.keys():
        raise BadInput("differences need two results of the same pairs, as `uwm.evaluate` returns them")
    now, before = result.samples, baseline.samples
    change = bootstrap({name: now[name].double() - before[name].double() for name in now}, seed)
    found: dict[str, dict[str, Any]] = {
        name: {
            "difference": change[name],
            "gained": int((now[name] & ~before[name]).sum()),
            "lost": int((before[name] & ~now[name]).sum()),
        }
        for name in now
    }
    for name in result.right:
        found[TOP1 + name] = difference(_of(result, name), _of(baseline, name), seed)
        if (safe := result.safe.get(name)) is not None and safe.any():
            found[TOP1_SAFE + name] = difference(_of(result, name, safe), _of(baseline, name, safe), seed)
    return found


def _of(result: EvalResult, data_set: str, rows: torch.Tensor | None = None) -> ZeroShot:
    """How a model classified a data set, or some of its images."""
    right = result.right[data_set]
    return ZeroShot(result.zero_shot[data_set], right if rows is None else right[rows])


def quadruples(calibration: CalibrationSet) -> CalibrationSet:
    """The pairs that have both captions and images. Raises BadInput when there are none."""
    whole = replace(calibration, pairs=tuple(p for p in calibration.pairs if p.has_text and p.has_image))
    if not whole.pairs:
        raise BadInput(f"{calibration.root}: no pair has both captions and images, which SafeGround needs")
    return whole


def embed(
    model: Model,
    calibration: CalibrationSet,
    *,
    batch_size: int = BATCH_SIZE,
    workers: int = 2,
    progress: Progress | None = None,
    cache: EmbeddingCache | None = None,
) -> Embeddings:
    """Embeddings of every complete quadruple of a set, from the cache where it has them.

    Raises:
        BadInput: The set has no complete quadruple. InvalidResult: NaN or infinite embeddings.
    """
    whole = quadruples(calibration)
    key = None if cache is None else embedding_key(model, whole, batch_size)
    found = None if cache is None or key is None else cache.get(key)
    if found is not None:
        return Embeddings(**found)
    settings: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": progress}
    made = Embeddings(*embed_tower(model, whole, "text", **settings), *embed_tower(model, whole, "vision", **settings))
    if cache is not None and key is not None:
        cache.put(key, vars(made))
    return made


@torch.no_grad()
def embed_tower(
    model: Model,
    calibration: CalibrationSet,
    tower: str,
    *,
    batch_size: int = BATCH_SIZE,
    workers: int = 2,
    progress: Progress | None = None,
) -> list[torch.Tensor]:
    """Normalised embeddings of the safe and of the unsafe side, float32 [n, dim] on the CPU, of pairs that have both.

    Raises:
        InvalidResult: NaN or infinite embeddings.
    """
    pairs = [p for p in calibration.pairs if (p.has_text if tower == "text" else p.has_image)]
    batches: Iterable = pair_batches(model, calibration, batch_size=batch_size, towers=[tower], workers=workers)
    if progress is not None:
        batches = progress(batches, count_batches(calibration, batch_size, [tower]), f"embed {tower}")
    sides: list[torch.Tensor] = []
    start = 0
    for batch in batches:
        found = [_encode(model, *side) for side in batch.sides(tower) or []]
        sides = sides or [torch.empty(len(pairs), rows.shape[1]) for rows in found]
        for side, rows in zip(sides, found, strict=True):
            side[start : start + len(rows)] = rows
            if not torch.isfinite(rows).all():
                bad = int((~torch.isfinite(rows)).any(1).nonzero()[0])
                raise InvalidResult(f"{tower} tower: NaN or infinite embeddings at pair {pairs[start + bad].id!r}")
        start += len(found[0])
    return sides


def _encode(model: Model, inputs: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return F.normalize(embed_inputs(model, inputs, mask), dim=-1).cpu()


def summarise(embeddings: Embeddings, concepts: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """The fields of `EvalResult` but zero-shot; `concepts` has one name a row, empty where there is none."""
    quadruple = (embeddings.safe_text, embeddings.unsafe_text, embeddings.safe_image, embeddings.unsafe_image)
    samples = safeground_samples(*quadruple) | retrieval_samples(*quadruple)
    rows = _rows_by_concept(concepts)
    return {
        "pairs": len(concepts),
        "figures": shares(samples, seed),
        "by_concept": {c: shares({f: s[rows[c]] for f, s in samples.items()}, seed) for c in rows},
        "concept_pairs": {concept: len(found) for concept, found in rows.items()},
        "similarities": histograms(own_similarities(*quadruple)),
        "samples": samples,
    }


def _rows_by_concept(concepts: Sequence[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, concept in enumerate(concepts if any(concepts) else ()):
        rows.setdefault(concept or "(none)", []).append(row)
    return dict(sorted(rows.items()))


def concepts_of(calibration: CalibrationSet) -> list[str]:
    """The concepts that figures are given by, sorted; none where no pair names one."""
    return [*_rows_by_concept([pair.concept for pair in calibration.pairs])]


def evaluate(
    model: Model,
    calib: CalibrationSet,
    *,
    data_sets: Mapping[str, DataSet] | None = None,
    batch_size: int = BATCH_SIZE,
    workers: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
    cache: EmbeddingCache | None = None,
) -> EvalResult:
    """Measure a model on pairs that it was not calibrated on (SafeGround, recall, zero-shot accuracy; UWM, section 5).

    Args:
        model: Patched or not.
        calib: The pairs; only complete quadruples count.
        data_sets: For zero-shot accuracy, from `uwm.knowledge.open_data_sets`.
        batch_size, workers, progress: As in `uwm.score`.
        seed: For the bootstrap.
        cache: Keeps embeddings between runs; None for no cache.
    """
    calib = quadruples(calib)
    embeddings = embed(model, calib, batch_size=batch_size, workers=workers, progress=progress, cache=cache)
    shared: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "seed": seed, "progress": progress}
    known = {name: zero_shot(model, data, **shared) for name, data in (data_sets or {}).items()}
    measured = summarise(embeddings, [pair.concept for pair in calib.pairs], seed)
    return EvalResult(
        zero_shot={name: found.figures for name, found in known.items()},
        right={name: found.right for name, found in known.items()},
        safe={name: found.safe for name, found in known.items() if found.safe is not None},
        **measured,
    )
