"""One tower's inputs, embedded again and again under different edits: what an edit leaves as it is, is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..editing.changes import Change
from ..editing.live import changed
from ..errors import InvalidResult
from ..models import Model
from ..models.kept import Kept, Source
from ..processes import from_first
from ..statistics.batches import PairBatch, Progress, embed_inputs, share_out
from ..statistics.embeddings import PairEmbeddings
from ..statistics.going_on import KeptPass
from ..statistics.passes import run_pass
from ..statistics.pooled import PooledInputs
from ..statistics.sources import embed_sources, in_batches, inputs_of
from ..weights import WeightId
from .pooled_mlp import PooledMlp, pooled_weights


class CachedTower:
    """Captions or images of one tower, and of the unedited model's work on them what an edit does not touch.

    An edit of the last MLP or the projection alone is worked out at the pooled token, see `PooledMlp`. Any other runs
    from the first edited block on, see `embed_sources`.

    Args:
        model: Unedited.
        tower: ``text`` or ``vision``.
        sources: What to embed; from now on the model keeps its work, see `Model.kept`.
        batch_size, workers, progress: As in `uwm.score`.

    Attributes:
        unedited: The unedited model's normalised embeddings, float32 [n, dim], on the CPU.
    """

    def __init__(
        self,
        model: Model,
        tower: str,
        sources: Sequence[Source],
        *,
        batch_size: int,
        workers: int,
        progress: Progress | None = None,
    ) -> None:
        self._model, self._tower, self._sources = model, tower, sources
        self._reading: dict[str, Any] = {"batch_size": batch_size, "workers": workers}
        model.kept = model.kept or Kept()
        self.unedited, self._pooled = self._first_pass(progress)

    def __len__(self) -> int:
        return len(self._sources)

    def embed(self, changes: Mapping[WeightId, Change]) -> torch.Tensor:
        """Normalised embeddings under these changes, float32 [n, dim], on the CPU.

        Raises:
            InvalidResult: NaN or infinite embeddings.
        """
        own = {name: change for name, change in changes.items() if name.tower == self._tower}
        if not own or not len(self):
            return self.unedited
        if self._pooled is not None and self._pooled.covers(own):
            found = self._pooled.embed(own)
        else:
            with changed(self._model, changes):
                found = embed_sources(self._model, self._tower, self._sources, **self._reading)
        rows = F.normalize(found, dim=-1).cpu()
        if not torch.isfinite(rows.sum()):  # one value that is not finite makes the sum so
            raise InvalidResult(f"{self._tower} tower: NaN or infinite embeddings")
        return rows

    def is_quick(self, changes: Iterable[WeightId]) -> bool:
        """Whether an edit of these tensors needs none of the blocks again."""
        own = [name for name in changes if name.tower == self._tower]
        return not own or (self._pooled is not None and self._pooled.covers(own))

    # ------------------------------------------------------------ the unedited model

    def _first_pass(self, progress: Progress | None) -> tuple[torch.Tensor, PooledMlp | None]:
        """The unedited embeddings, and the last MLP at the pooled token where that is all there is to it."""
        if not len(self):
            return torch.empty(0, 0), None
        layers = pooled_weights(self._model, self._tower)
        inputs, embeddings = PooledInputs(self._model, [*layers]), PairEmbeddings(normalised=False)
        parts = in_batches(self._sources, self._reading["batch_size"])
        kept = KeptPass(self._model, [self._tower, len(self)], [inputs, embeddings])
        pairs = [{self._tower: len(part)} for part in parts]
        batches: Iterable = kept.over(share_out(parts, self._batches, pairs, done=kept.done))
        if progress is not None:
            batches = progress(batches, len(parts), f"embed {self._tower}")
        run_pass(self._model, batches, [inputs, embeddings], [self._tower])
        kept.end()
        (rows,) = embeddings.sides(self._tower)
        pooled = PooledMlp.of(self._model, self._tower, {name: inputs.sides(name)[0] for name in layers}, rows)
        return F.normalize(rows, dim=-1), pooled if pooled is not None and self._agrees(pooled) else None

    @torch.no_grad()
    def _agrees(self, pooled: PooledMlp) -> bool:
        """Whether an edit of the MLP does to the first batch what it does to the tower."""

        def first_batch() -> torch.Tensor:
            with changed(self._model, pooled.probe()):
                first = inputs_of(self._model, in_batches(self._sources, self._reading["batch_size"])[:1], 1)
                return embed_inputs(self._model, *next(first)).cpu()

        return pooled.agrees(from_first(first_batch, "first batch"))

    def _batches(self, parts: Sequence[Sequence[Source]]) -> Iterator[PairBatch]:
        return (_as_batch(*made) for made in inputs_of(self._model, map(tuple, parts), self._reading["workers"]))


def _as_batch(inputs: torch.Tensor, mask: torch.Tensor | None) -> PairBatch:
    if mask is None:
        return PairBatch(safe_pixel_values=inputs)
    return PairBatch(safe_input_ids=inputs, safe_attention_mask=mask)
