"""Measure the models of a job on its held-out sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager

from ..calibration import CalibrationSet
from ..evaluation import EvalResult, evaluate
from ..knowledge import DataSet
from ..models import Model
from ..stages import stage
from ..statistics.batches import Progress
from .reading import Inputs


def measure(
    inputs: Inputs,
    columns: Iterable[tuple[str, AbstractContextManager[Model]]],
    held_out: Mapping[str, CalibrationSet],
    data_sets: Mapping[str, DataSet],
    progress: Progress | None,
) -> dict[str, dict[str, EvalResult]]:
    """Measure every column on every set; zero-shot data sets are measured with the first set.

    Args:
        inputs: Batch size, workers and seed.
        columns: Name -> a context that puts a model into the state to measure.
        held_out: What to measure on; sets without a pair of captions and images are left out.

    Returns:
        Set -> column -> result; empty for a model with one tower.
    """
    sets = {name: pairs for name, pairs in held_out.items() if any(p.has_text and p.has_image for p in pairs.pairs)}
    results: dict[str, dict[str, EvalResult]] = {name: {} for name in sets}
    for column, state in columns:
        stage(progress, column, 2 * len(sets) + len(data_sets))
        with state as model:
            if len(model.modalities) < 2:
                return {}
            for number, (name, pairs) in enumerate(sets.items()):
                results[name][column] = evaluate(
                    model,
                    pairs,
                    data_sets=data_sets if number == 0 else None,
                    batch_size=inputs.batch_size,
                    workers=inputs.workers,
                    seed=inputs.seed,
                    progress=progress,
                )
    return results
