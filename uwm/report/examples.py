"""Retrieval before and after, query by query; shown only on request, since it shows captions and images of the set."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..calibration import CalibrationPair, CalibrationSet
from ..embedding import SIDES, Embeddings, items_of
from ..images import load_image
from ..metrics import Items, first_rows
from .pages import Part

PER_KIND, RESULTS = 3, 5
THUMBNAIL = 64  # px
KINDS = {  # query -> its side and modality, and that of what it searches
    "tu": ("unsafe", "text", "image"),
    "vu": ("unsafe", "image", "text"),
    "ts": ("safe", "text", "image"),
    "vs": ("safe", "image", "text"),
}


@dataclass(frozen=True)
class Item:
    """A caption or an image of a pair; `own` if it belongs to the pair of the query."""

    side: str
    content: str | Path
    own: bool = False


@dataclass(frozen=True)
class Example:
    """One query and the first items that it finds, by column."""

    kind: str
    query: Item
    results: dict[str, tuple[Item, ...]]


def find_examples(whole: CalibrationSet, embeddings: Mapping[str, Embeddings], seed: int = 0) -> list[Example]:
    """Queries of each kind, drawn with the seed and not chosen, and what they find among all safe and unsafe items.

    Args:
        whole: Complete quadruples.
        embeddings: Column -> embeddings of the pairs, row for row.
        seed: For the draw.
    """
    rows = sorted(random.Random(seed).sample(range(len(whole)), min(PER_KIND, len(whole))))
    return [_example(kind, row, whole.pairs, items_of(whole), embeddings) for kind in KINDS for row in rows]


def _example(
    kind: str, row: int, pairs: Sequence[CalibrationPair], items: Items, embeddings: Mapping[str, Embeddings]
) -> Example:
    side, modality, other = KINDS[kind]
    places = [(found, int(place)) for found in SIDES for place in first_rows(getattr(items, f"{found}_{other}"))[0]]

    def item(found: str, place: int) -> Item:
        names = getattr(items, f"{found}_{other}")
        return Item(found, getattr(pairs[place], f"{found}_{other}"), bool(names[place] == names[row]))

    results = {}
    for column, embedded in embeddings.items():
        candidates = torch.stack([getattr(embedded, f"{found}_{other}")[place] for found, place in places])
        similarity = candidates @ getattr(embedded, f"{side}_{modality}")[row]  # [different items]
        order = similarity.argsort(descending=True, stable=True)[:RESULTS]
        results[column] = tuple(item(*places[number]) for number in order.tolist())
    return Example(kind, Item(side, getattr(pairs[row], f"{side}_{modality}")), results)


def examples_part(examples: Sequence[Example]) -> Part | None:
    """Each query and its results, column by column; None without examples."""
    strips = [
        {
            "what": f"{example.query.side} {'text' if isinstance(example.query.content, str) else 'image'}",
            "query": shown(example.query.content, example.query.side),
            "rows": [
                (name, [shown(i.content, i.side) | {"own": i.own} for i in found])
                for name, found in example.results.items()
            ],
        }
        for example in examples
    ]
    return Part("examples", "Examples", strips) if examples else None


def shown(content: str | Path, side: str) -> dict[str, Any]:
    """A caption, or an image as a small copy, as templates show it; `side` is empty where it is not known."""
    if isinstance(content, str):
        return {"source": "", "text": content, "side": side}
    return {"source": thumbnail(content), "alt": f"{side} image".strip(), "side": side}


def thumbnail(path: Path) -> str:
    """A small copy of an image as a WebP data URI."""
    image = load_image(path)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
