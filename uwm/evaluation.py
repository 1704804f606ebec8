"""A model on held-out pairs: SafeGround and retrieval with intervals, zero-shot accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from .cache import EmbeddingCache
from .calibration import CalibrationSet
from .embedding import Embeddings, collapsed_towers, embed, items_of, quadruples
from .errors import BadInput
from .figures import PRESERVED, TOP1, TOP1_SAFE
from .intervals import changes, shares
from .knowledge import DataSet, ZeroShot, difference, zero_shot
from .metrics import (
    histograms,
    own_similarities,
    retrieval_samples,
    safeground_samples,
    with_means,
)
from .models import Model
from .statistics.batches import BATCH_SIZE, Progress

COLLAPSED = "different {items} have the same embedding, so retrieval is chance"
IN_MEMORY = ("samples", "right", "safe", "preserved")  # fields of an EvalResult that are not written


@dataclass(frozen=True)
class EvalResult:
    """Figures with intervals.

    Attributes:
        pairs: The number of quadruples.
        figures: Name -> (mean, low, high), fractions with 95 % intervals of `intervals.shares`; the names are
            `figures.PAIRED`.
        zero_shot: Data set -> `uwm.knowledge.ZeroShot.figures`.
        by_concept: Concept -> the same figures over its queries (candidates are the whole set's); empty where the set
            has no concepts.
        concept_pairs: Concept -> how many quadruples it has.
        similarities: ``ts``, ``tu``, ``vs``, ``vu`` -> ``safe``, ``unsafe`` -> histogram of the cosine of such a query
            with its own safe and unsafe item: counts in 100 equal bins from −1 to 1.
        collapsed: Towers that give different items one embedding, so that retrieval is chance.
        samples: Name -> values of 0 to 1, [n], what the figures are means of; kept in memory only.
        right: Data set -> whether each image was classified correctly, 0 to 1, [images]; in memory only.
        safe: Data set that names unsafe classes -> which images are of safe ones, bool [images]; in memory only.
        preserved: Whether the first result of each input of a preservation set stays the same, 0 or 1, [inputs], where
            that was measured; in memory only.
    """

    pairs: int
    figures: dict[str, tuple[float, float, float]]
    zero_shot: dict[str, dict[str, Any]]
    by_concept: dict[str, dict[str, tuple[float, float, float]]] = field(default_factory=dict)
    concept_pairs: dict[str, int] = field(default_factory=dict)
    similarities: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    collapsed: tuple[str, ...] = ()
    samples: dict[str, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)
    right: dict[str, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)
    safe: dict[str, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)
    preserved: torch.Tensor | None = field(default=None, repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: everything but what is kept in memory only."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in IN_MEMORY}


def collapse_notes(results: Mapping[str, EvalResult]) -> Iterator[str]:
    """One line for every tower that has collapsed, with the names of the results in which it has."""
    for tower, items in (("text", "captions"), ("vision", "images")):
        if names := [name for name, result in results.items() if tower in result.collapsed]:
            yield f"the {tower} tower has collapsed in {', '.join(names)}: {COLLAPSED.format(items=items)}"


def differences(result: EvalResult, baseline: EvalResult, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Paired differences to a baseline, query by query.

    Args:
        result, baseline: Measured on the same pairs, with their samples.
        seed: For the bootstrap.

    Returns:
        Figure -> ``difference``: (mean, low, high), result − baseline, with its paired 95 % interval;
        ``gained`` and ``lost``: queries whose value rose and fell. Zero-shot accuracy is there as ``top1:DATASET``,
        by image, and as ``top1_safe:DATASET`` over safe classes alone where the data set names unsafe ones.

    Raises:
        BadInput: They are not of the same pairs, or were read back without samples.
    """
    if result.pairs != baseline.pairs or not result.samples or result.samples.keys() != baseline.samples.keys():
        raise BadInput("differences need two results of the same pairs, as `uwm.evaluate` returns them")
    now, before = result.samples, baseline.samples
    change = changes({name: now[name].double() - before[name].double() for name in now}, seed)
    found: dict[str, dict[str, Any]] = {
        name: {
            "difference": change[name],
            "gained": int((now[name] > before[name]).sum()),
            "lost": int((now[name] < before[name]).sum()),
        }
        for name in now
    }
    if result.preserved is not None and baseline.preserved is not None:
        moved = result.preserved - baseline.preserved
        counts = {"gained": int((moved > 0).sum()), "lost": int((moved < 0).sum())}
        found[PRESERVED] = {"difference": changes({PRESERVED: moved}, seed)[PRESERVED], **counts}
    for name in result.right:
        found[TOP1 + name] = difference(_of(result, name), _of(baseline, name), seed)
        if (safe := result.safe.get(name)) is not None and safe.any():
            found[TOP1_SAFE + name] = difference(_of(result, name, safe), _of(baseline, name, safe), seed)
    return found


def _of(result: EvalResult, data_set: str, rows: torch.Tensor | None = None) -> ZeroShot:
    """How a model classified a data set, or some of its images."""
    right = result.right[data_set]
    return ZeroShot(result.zero_shot[data_set], right if rows is None else right[rows])


def summarise(embeddings: Embeddings, whole: CalibrationSet, seed: int = 0) -> dict[str, Any]:
    """The fields of `EvalResult` but zero-shot, of complete quadruples."""
    quadruple, items = vars(embeddings), items_of(whole)
    samples = with_means(safeground_samples(**quadruple) | retrieval_samples(**quadruple, items=items))
    return {
        **summary(samples, whole, seed),
        "similarities": histograms(own_similarities(**quadruple)),
        "collapsed": (*collapsed_towers(embeddings, items),),
    }


def summary(
    samples: dict[str, torch.Tensor], whole: CalibrationSet, seed: int = 0, preserved: torch.Tensor | None = None
) -> dict[str, Any]:
    """The fields of `EvalResult` that come of samples."""
    rows = _rows_by_concept([pair.concept for pair in whole.pairs])
    kept = {} if preserved is None else shares({PRESERVED: preserved}, seed)
    return {
        "pairs": len(whole),
        "figures": shares(samples, seed) | kept,
        "by_concept": {c: shares({f: s[rows[c]] for f, s in samples.items()}, seed) for c in rows},
        "concept_pairs": {concept: len(found) for concept, found in rows.items()},
        "samples": samples,
    }


def zero_shot_fields(known: Mapping[str, ZeroShot]) -> dict[str, Any]:
    """The fields of `EvalResult` that come of data sets."""
    return {
        "zero_shot": {name: found.figures for name, found in known.items()},
        "right": {name: found.right for name, found in known.items()},
        "safe": {name: found.safe for name, found in known.items() if found.safe is not None},
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
    return EvalResult(**summarise(embeddings, calib, seed), **zero_shot_fields(known))
