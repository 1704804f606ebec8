"""One tower's inputs, embedded again and again under different edits: what an edit leaves as it is, is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from ..editing.changes import Change
from ..editing.live import changed
from ..errors import InvalidResult
from ..models import Model
from ..processes import from_first, in_order, own_part
from ..statistics.batches import PairBatch, Progress, embed_inputs, share_out
from ..statistics.embeddings import PairEmbeddings
from ..statistics.hooks import kept_outputs, skipped
from ..statistics.passes import block_module, run_pass
from ..statistics.pooled import PooledInputs
from ..weights import WeightId
from .pooled_mlp import PooledMlp, pooled_weights

ROOM = 4 << 30  # bytes of inputs and activations that are kept, together

Source = str | Callable[[], Image.Image]  # a caption, or what reads an image
Inputs = tuple[torch.Tensor, torch.Tensor | None]


@dataclass
class CacheMemory:
    """Memory that is left for what can be made anew."""

    bytes: int = ROOM

    def take(self, *tensors: Any) -> bool:
        """Whether these fit; then their bytes are taken."""
        wanted = sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor))
        if wanted > self.bytes:
            return False
        self.bytes -= wanted
        return True


class CachedTower:
    """Captions or images of one tower, and of the unedited model's work on them what an edit does not touch.

    An edit of the last MLP or the projection alone is worked out at the pooled token, see `PooledMlp`. Any other runs
    from the first edited block on, for the same batches, so that the embeddings are those of the whole tower bit for
    bit.

    Args:
        model: Unedited.
        tower: ``text`` or ``vision``.
        sources: What to embed.
        room: For inputs and for outputs of blocks; what does not fit is made anew each time.
        batch_size, workers, progress: As in `uwm.score`.

    Attributes:
        unedited: The unedited model's normalised embeddings, float32 [n, dim], on the CPU.
    """

    def __init__(
        self,
        model: Model,
        tower: str,
        sources: Sequence[Source],
        room: CacheMemory,
        *,
        batch_size: int,
        workers: int,
        progress: Progress | None = None,
    ) -> None:
        self._model, self._tower, self._sources, self._room = model, tower, sources, room
        self._batch_size, self._workers = batch_size, workers
        self._made: dict[int, Inputs] = {}  # batch -> inputs
        self._outputs: dict[tuple[int, int], Any] = {}  # block, batch -> its output
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
                found = torch.cat(in_order(self._from_block(own), f"trial {self._tower}"))
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
        named = pooled_weights(self._model, self._tower)
        inputs, embeddings = PooledInputs(self._model, [*named]), PairEmbeddings(normalised=False)
        batches: Iterable = self._shared_batches()
        if progress is not None:
            batches = progress(batches, self._batches, f"embed {self._tower}")
        run_pass(self._model, batches, [inputs, embeddings], [self._tower])
        (rows,) = embeddings.sides(self._tower)
        pooled = PooledMlp.of(self._model, self._tower, {name: inputs.sides(name)[0] for name in named}, rows)
        return F.normalize(rows, dim=-1), pooled if pooled is not None and self._agrees(pooled) else None

    @torch.no_grad()
    def _agrees(self, pooled: PooledMlp) -> bool:
        """Whether an edit of the MLP does to the first batch what it does to the tower."""

        def first_batch() -> torch.Tensor:
            with changed(self._model, pooled.probe()):
                return embed_inputs(self._model, *next(self._inputs())[1]).cpu()

        return pooled.agrees(from_first(first_batch, "probe"))

    @property
    def _batches(self) -> int:
        return -(-len(self) // self._batch_size)

    def _as_batch(self, inputs: torch.Tensor, mask: torch.Tensor | None) -> PairBatch:
        if mask is None:
            return PairBatch(safe_pixel_values=inputs)
        return PairBatch(safe_input_ids=inputs, safe_attention_mask=mask)

    def _shared_batches(self) -> Iterator[PairBatch]:
        """All batches, of which those of other processes are not made."""
        with ThreadPoolExecutor(max(1, self._workers)) as pool:

            def made(numbered: range) -> PairBatch:
                return self._as_batch(*self._kept(numbered.start // self._batch_size, pool))

            starts = range(0, len(self), self._batch_size)
            rows = [range(start, min(start + self._batch_size, len(self))) for start in starts]
            yield from share_out((made, part, (self._tower,)) for part in rows)

    def _inputs(self) -> Iterator[tuple[int, Inputs]]:
        """The number of each of this process's batches, and tokens with their mask, or pixel values."""
        with ThreadPoolExecutor(max(1, self._workers)) as pool:
            for number in own_part(range(self._batches)):
                yield number, self._kept(number, pool)

    def _kept(self, number: int, pool: ThreadPoolExecutor) -> Inputs:
        """The inputs of a batch; kept where there is room."""
        made = self._made.get(number)
        if made is None:
            made = self._make(number, pool)
            if self._room.take(*made):
                self._made[number] = made
        return made

    def _make(self, number: int, pool: ThreadPoolExecutor) -> Inputs:
        part = self._sources[number * self._batch_size : (number + 1) * self._batch_size]
        captions = [source for source in part if isinstance(source, str)]
        if captions:
            return self._model.tokenize(captions)
        return self._model.preprocess(list(pool.map(_read, part))), None

    # ------------------------------------------------------------ an edited one

    @torch.no_grad()
    def _from_block(self, changes: Mapping[WeightId, Change]) -> Iterator[torch.Tensor]:
        """Embeddings of this process's batches, [batch, dim].

        Blocks before the first edited one are not run where their output is kept.
        """
        first = self._first_edited(changes)
        blocks = [block_module(self._model, WeightId(self._tower, block, "fc1")) for block in range(first)]
        for number, made in self._inputs():
            output = self._outputs.get((first - 1, number))
            if output is not None:
                with skipped(blocks, output):
                    yield embed_inputs(self._model, *made)
            elif blocks:
                with kept_outputs(blocks[-1]) as outputs:
                    yield embed_inputs(self._model, *made)
                if len(outputs) == 1 and self._room.take(*_tensors(outputs[0])):
                    self._outputs[first - 1, number] = outputs[0]
            else:
                yield embed_inputs(self._model, *made)

    def _first_edited(self, changes: Iterable[WeightId]) -> int:
        """How many blocks come before the first edited tensor; tensors that no block holds come before or after all."""
        depth = self._model.depth(self._tower)

        def before(name: WeightId) -> int:
            if name.block is not None:
                return name.block
            return depth if name.slot.removesuffix(".bias") in LATE else 0

        return min(*map(before, changes), depth)


LATE = ("norm", "proj", "head.norm", "head.fc1", "head.fc2")  # after all blocks


def _read(source: Source) -> Image.Image:
    assert not isinstance(source, str)
    return source()


def _tensors(output: Any) -> tuple[torch.Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)
