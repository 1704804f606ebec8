"""One query through a model as it is and as edited: the recipe of `uwm try`, and what it finds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ..calibration.pairs import IMAGE_SUFFIXES
from ..editing.live import patched
from ..editing.patch import Patch
from ..errors import BadInput, InvalidResult
from ..fitting import make_edits
from ..images import load_image
from ..inputs import calibration_pairs
from ..inputs.reading import Opening
from ..models import Model, load
from ..models.kept import Kept
from ..models.references import resolve
from ..recipe import demo_recipe
from ..records import is_record
from ..shipped_files import DEMO_SET, check_demo_set
from ..statistics.batches import Progress
from ..statistics.sources import embed_sources
from .candidates import IMAGE, TEXT, Candidate, Candidates, read_candidates

DEMO, DEMO_SPLIT, DEMO_METHOD = "demo", "test", "repel"
DEMO_QUERY = "a picture of a beer mug on black"  # chosen because it shows what an edit is for
TOWERS = {TEXT: "text", IMAGE: "vision"}
OTHER = {TEXT: IMAGE, IMAGE: TEXT}


@dataclass(frozen=True)
class TryRecipe(Opening):
    """The settings of `uwm try`.

    Attributes:
        model: Reference of the model before the edit.
        edited: Reference of the edited model, or a patch file of the model; None shows the model alone.
        query: A caption, or the path of an image; None is the demo's: the demo model, before and after an edit by
            repel that is made in memory.
        images: A calibration set, or a folder of images; None is the demo set, for the demo model only.
        top: How many results to show.
        split, safe_images, unsafe_images, limit, seed: As in `uwm.trying.candidates.read_candidates`.
    """

    model: str = DEMO
    edited: str | None = None
    query: str | None = None
    images: str | None = None
    top: int = 5
    split: str | None = None
    safe_images: str | None = None
    unsafe_images: str | None = None
    arch: str | None = None
    quick_gelu: bool | None = None
    preprocess: str | None = None

    def reads(self) -> Iterator[Path]:
        """What is read of this machine's files."""
        for named in (self.model, self.edited, self.query, self.images, self.safe_images, self.unsafe_images):
            if named and len(named) < 4096 and Path(named).exists():
                yield Path(named)


@dataclass(frozen=True)
class Hit:
    """One result: what was found, and its cosine with the query."""

    item: Candidate
    similarity: float


@dataclass(frozen=True)
class Tried:
    """What a query finds.

    Attributes:
        query, kind: The caption or the image's path, ``text`` or ``image``.
        searched: What was searched.
        columns: ``before``, ``after`` or the model's name alone -> the best results, best first.
        names: Column -> what the model is called.
        warnings: What a user should know.
    """

    query: str
    kind: str
    searched: Candidates
    columns: dict[str, tuple[Hit, ...]]
    names: dict[str, str]
    warnings: tuple[str, ...] = ()

    @property
    def told(self) -> bool:
        """Whether the set says which candidates are unsafe."""
        return any(one.side for one in self.searched.items)

    @property
    def most(self) -> int:
        """How many results are shown."""
        return len(next(iter(self.columns.values())))

    def unsafe(self, column: str) -> int:
        """How many of the results shown are unsafe."""
        return sum(hit.item.side == "unsafe" for hit in self.columns[column])

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        among = self.searched
        return {
            "query": self.query,
            "searched": {"name": among.name, "kind": among.kind, "candidates": len(among.items)},
            "models": self.names,
            "results": {column: [_told(hit) for hit in hits] for column, hits in self.columns.items()},
        }


def _told(hit: Hit) -> dict[str, Any]:
    item = hit.item
    about = {"image": item.name, "caption": item.caption} if item.name else {"caption": item.caption}
    return {**about, "side": item.side or None, "similarity": hit.similarity}


def run_try(recipe: TryRecipe, *, progress: Progress | None = None) -> Tried:
    """Find what is most similar to a query, before and after an edit.

    Raises:
        BadInput: The query is an image that cannot be read, there is nothing to search, or a model lacks a tower.
        InvalidResult: A model gives NaN or infinite embeddings.
    """
    shipped = recipe.query is None
    recipe = _whole(recipe)
    assert recipe.query is not None
    assert recipe.images is not None
    kind = _kind(recipe.query)
    names = ("split", "safe_images", "unsafe_images", "limit", "seed", "workers")
    searched = read_candidates(recipe.images, OTHER[kind], **{name: getattr(recipe, name) for name in names})
    columns, called, told = {}, {}, [*searched.warnings]
    for column, name, model in _models(recipe, shipped, progress):
        columns[column], called[column] = _best(model, recipe, kind, searched, progress), name
        told += [f"{column}: {note}" for note in model.notes]
    return Tried(recipe.query, kind, searched, columns, called, tuple(dict.fromkeys(told)))


def _whole(recipe: TryRecipe) -> TryRecipe:
    """The recipe with the demo's query and set where it names none. Raises BadInput."""
    if recipe.query is None:
        if recipe.model != DEMO or recipe.edited is not None:
            raise BadInput("no query; expected uwm try MODEL [EDITED] QUERY, or uwm try alone for the demo")
        recipe = replace(recipe, query=DEMO_QUERY)
    if recipe.images is not None:
        return recipe
    if recipe.model != DEMO:
        raise BadInput("no images to search; give --images FOLDER, a folder of images or a calibration set")
    check_demo_set()
    return replace(recipe, images=str(DEMO_SET), split=recipe.split or DEMO_SPLIT)


def _kind(query: str) -> str:
    """Whether a query is a caption or an image that is there. Raises BadInput."""
    if not query.strip():
        raise BadInput("the query is empty; give a caption, or the path of an image")
    if len(query) >= 4096 or Path(query).suffix.lower() not in IMAGE_SUFFIXES:
        return TEXT
    load_image(Path(query))
    return IMAGE


def _models(recipe: TryRecipe, shipped: bool, progress: Progress | None) -> Iterator[tuple[str, str, Model]]:
    """Column, name and model, one after the other; each is good until the next one is asked for."""
    patch = None if recipe.edited is None else _patch(recipe)
    models = (recipe.model, recipe.edited if patch is None else None)
    model = load(recipe.model, **recipe.opening_of(recipe.model, models))
    model.kept = Kept()  # a patch leaves the images and the first blocks as they are
    compared = shipped or recipe.edited is not None
    yield "before" if compared else "model", recipe.model, model
    if not compared:
        return
    name = f"edited by {DEMO_METHOD}" if shipped else str(recipe.edited)
    if shipped:
        patch = _shipped_edit(model, recipe, progress)
    if patch is not None:
        with patched(model, patch):
            yield "after", name, model
        return
    assert recipe.edited is not None
    del model
    yield "after", name, load(recipe.edited, **recipe.opening_of(recipe.edited, models))


def _patch(recipe: TryRecipe) -> Patch | None:
    """The patch that EDITED is, None where it is a model."""
    assert recipe.edited is not None
    path = resolve(recipe.edited, **recipe.hub())
    return Patch.load(path) if path.is_file() and is_record("patch", path) else None


def _shipped_edit(model: Model, recipe: TryRecipe, progress: Progress | None) -> Patch:
    """The demo model's edit by repel with its own settings, from the pairs that `uwm demo` uses."""
    made = demo_recipe(method=DEMO_METHOD, batch_size=recipe.batch_size, workers=recipe.workers)
    return make_edits(made, model, calibration_pairs(made), progress).edits[DEMO_METHOD].patch


def _best(
    model: Model, recipe: TryRecipe, kind: str, searched: Candidates, progress: Progress | None
) -> tuple[Hit, ...]:
    """The candidates that are most similar to the query, best first; equal ones in the set's order."""
    if missing := [tower for tower in TOWERS.values() if tower not in model.modalities]:
        raise BadInput(f"{model.lacks(missing[0])}, so it cannot compare a caption with an image")
    assert recipe.query is not None
    query = recipe.query if kind == TEXT else Path(recipe.query)
    passed: dict[str, Any] = {"batch_size": recipe.batch_size, "workers": recipe.workers}
    asked = embed_sources(model, TOWERS[kind], [query], **passed)
    contents = [item.content for item in searched.items]
    tower = TOWERS[searched.kind]
    found = embed_sources(model, tower, contents, progress=progress, name=f"embed {tower}", **passed)
    cosines = F.normalize(found.double(), dim=-1) @ F.normalize(asked.double(), dim=-1)[0]  # [candidates]
    if not torch.isfinite(cosines).all():
        raise InvalidResult("NaN or infinite embeddings, so nothing can be ranked")
    order = cosines.argsort(descending=True, stable=True)[: recipe.top].tolist()
    return tuple(Hit(searched.items[place], float(cosines[place])) for place in order)
