"""Batches of pairs for training, in any order, and a student's embeddings of them with gradient."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..calibration import CalibrationSet
from ..embedding import Embeddings
from ..images import load_image
from ..models import Model
from ..models.kept import Kept
from ..statistics.batches import embed_inputs

KEPT_BYTES = 1 << 30  # preprocessed pictures of so many bytes are read once, where the model itself keeps none


@dataclass(frozen=True)
class Batch:
    """Preprocessed pairs, the safe sides first: pixel values [2 · pairs, 3, h, w], ids and mask [2 · pairs, length]."""

    pixel_values: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor

    def __len__(self) -> int:
        return len(self.input_ids) // 2

    def part(self, rows: torch.Tensor) -> Batch:
        """Some of the pairs."""
        both = torch.cat([rows, rows + len(self)])
        return Batch(self.pixel_values[both], self.input_ids[both], self.attention_mask[both])


class Feeder:
    """The pairs of a set as batches; the next one is read while the last one is worked on."""

    def __init__(self, model: Model, pairs: CalibrationSet, workers: int) -> None:
        self._model = model
        self._pairs = pairs.pairs
        self.size = len(pairs)
        self._readers = ThreadPoolExecutor(max(1, workers))
        self._kept = model.kept or Kept(KEPT_BYTES)

    def feed(self, batches: Iterable[torch.Tensor]) -> Iterator[Batch]:
        """The batches of these rows, int64 [batch] each, in order."""
        with ThreadPoolExecutor(1) as ahead:
            waiting = []
            for rows in batches:
                waiting.append(ahead.submit(self.batch, rows))
                if len(waiting) > 1:
                    yield waiting.pop(0).result()
            yield from (future.result() for future in waiting)

    def batch(self, rows: torch.Tensor) -> Batch:
        """One batch."""
        chosen = [self._pairs[row] for row in rows.tolist()]
        texts = [str(p.safe_text) for p in chosen] + [str(p.unsafe_text) for p in chosen]
        pixels = torch.stack([self._pixels(row) for row in rows.tolist()], 1)  # [2, pairs, 3, h, w]
        return Batch(pixels.flatten(0, 1), *self._model.tokenize(texts))

    def _pixels(self, row: int) -> torch.Tensor:
        pair = self._pairs[row]
        paths = [path for path in (pair.safe_image, pair.unsafe_image) if path is not None]
        known = self._kept.pixels
        missing = [path for path in dict.fromkeys(paths) if path not in known]
        images = self._model.preprocess(list(self._readers.map(load_image, missing))) if missing else ()
        read = dict(zip(missing, (image.clone() for image in images), strict=True))
        for path, image in read.items():
            if self._kept.take(image):
                known[path] = image
        return torch.stack([read[path] if path in read else known[path] for path in paths])


def student_embeddings(student: Model, batch: Batch) -> Embeddings:
    """Normalised embeddings of a batch, float32 [pairs, dim] each, with gradient."""
    text = F.normalize(embed_inputs(student, batch.input_ids, batch.attention_mask), dim=-1)
    image = F.normalize(embed_inputs(student, batch.pixel_values, None), dim=-1)
    return Embeddings(*text.chunk(2), *image.chunk(2))
