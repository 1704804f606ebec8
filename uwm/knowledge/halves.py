"""Two halves of a data set: one to choose settings by, one to measure what was chosen."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import BadInput
from .data_sets import DataSet
from .pictures import Pictures

MOST = 2000  # pictures to choose by; the others are measured


@dataclass(frozen=True)
class PictureSubset:
    """A part of a data set, with what it knows of them."""

    pictures: Pictures
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.pictures[self.rows[index]]

    def __getattr__(self, name: str) -> Any:
        if name not in ("targets", "samples"):
            raise AttributeError(name)
        whole = getattr(self.pictures, name)
        return [whole[row] for row in self.rows]


def halves(data: DataSet, seed: int) -> tuple[DataSet, DataSet]:
    """Half of a data set to choose by, `MOST` pictures at most, and the rest of it to measure on.

    Drawn with the seed, of every class alike where the classes of the pictures are known without reading them.

    Raises:
        BadInput: There is one picture only.
    """
    if len(data) < 2:
        raise BadInput(f"{data.name}: {len(data)} picture; at least 2 are needed, to choose by one and measure another")
    targets = getattr(data.pictures, "targets", None)
    rows = list(range(len(data)))
    random.Random(seed).shuffle(rows)
    if targets is not None:
        rows.sort(key=lambda row: int(targets[row]))  # stable: by class, drawn within it
    half = rows[1::2]
    choosing = sorted(half[place * len(half) // MOST] for place in range(MOST)) if len(half) > MOST else sorted(half)
    measuring = sorted({*rows} - {*choosing})
    first, second = (replace(data, pictures=PictureSubset(data.pictures, chosen)) for chosen in (choosing, measuring))
    return first, second
