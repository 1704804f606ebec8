"""Scoring alone: the first half of an entry edit, so that thresholds can be tried for free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ...calibration import CalibrationSet
from ...errors import BadInput
from ...models import Model
from ...statistics.batches import BATCH_SIZE, PairBatch, Progress
from ...statistics.passes import Reducer
from .. import settings
from ..editors import Pairs, find_editor
from ..making import about, gather
from .editor import TEXT_LAYERS, VISION_LAYERS, EntryEditor
from .scores import Scores

__all__ = ["Scores", "entry_editor", "score"]


def score(
    model: Model,
    calib: CalibrationSet | Iterable[PairBatch],
    *,
    method: str = "uwm",
    variant: str | None = None,
    text_layers: str | Sequence[str] = TEXT_LAYERS,
    vision_layers: str | Sequence[str] = VISION_LAYERS,
    batch_size: int = BATCH_SIZE,
    workers: int = 2,
    progress: Progress | None = None,
    also: Sequence[Reducer] = (),
) -> Scores:
    """Score the chosen weights by how strongly they carry the unsafe side (UWM, section 4).

    Args:
        model: From `uwm.load`.
        calib: A calibration set, or any iterable of `PairBatch` (unpaired for ``ratio-of-means``, ``unsafe-only``).
        method: An editor that scores entries: ``uwm``, ``log-ratio``, ``grad-unsafe``, ``grad-safe-clip``.
        variant: Of UWM's score: ``ratio`` (the paper's), ``ratio-of-means``, ``difference``, ``unsafe-only``.
        text_layers, vision_layers: Slots, globs or full names; ``"none"`` leaves the tower alone.
        batch_size: Pairs at a time; it does not change UWM's scores, it does change the gradient baselines'.
        workers: Threads that read images.
        progress: Wraps the batches, as tqdm does: ``progress(batches, total, name)``.
        also: Further reducers that UWM's pass feeds; the gradient baselines make no such pass and feed none.

    Raises:
        BadInput: A pattern that matches nothing, an unknown method or variant, no weight chosen.
        InvalidResult: A chosen layer saw no activations, or they were not finite.
    """
    editor = entry_editor(method)
    given: dict[str, Any] = {"variant": variant, "text_layers": text_layers, "vision_layers": vision_layers}
    chosen = settings.make(editor, given)
    if not isinstance(calib, CalibrationSet):
        statistics = editor.statistics(model, Pairs(), chosen)
        statistics.feed(model, calib, also)
        return statistics.scores(model)
    statistics = editor.statistics(model, about(calib), chosen)
    gather(model, statistics, calib, batch_size=batch_size, workers=workers, progress=progress, also=also)
    return statistics.scores(model, calib.fingerprint())


def entry_editor(name: str) -> EntryEditor:
    """An editor that scores entries. Raises BadInput for an unknown name and for editors of other kinds."""
    editor = find_editor(name)
    if not isinstance(editor, EntryEditor):
        raise BadInput(f"--method {name!r}: scores no entries, so it has no steps score and select; use `uwm edit`")
    return editor
