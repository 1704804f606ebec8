"""Controls of an entry edit: as many entries of the same weights, chosen otherwise."""

from __future__ import annotations

from dataclasses import replace

from ...models import Model
from ..changes import Scale
from ..live import check_live
from ..patch import Patch


def random_control(patch: Patch, seed: int = 0) -> Patch:
    """A patch of equal kind and size, drawn at random for every tensor: the control that every comparison shows."""
    changes = {
        name: change.random(patch.shapes[name], seed * 1_000_003 + number)
        for number, (name, change) in enumerate(patch.changes.items())
    }
    return replace(patch, changes=changes, recipe={"method": "random", "seed": seed}, **_UNFITTED)


def magnitude_control(patch: Patch, model: Model) -> Patch:
    """As many entries of the same weights, those of largest |W|, of equal ones the first: the other control.

    Args:
        patch: Of scaled entries; it gives the counts and α.
        model: Unedited, the one that the patch was made for.

    Raises:
        BadInput: As `patched`.
    """
    check_live(model, patch)
    changes = {}
    for name, change in patch.changes.items():
        assert isinstance(change, Scale)
        order = model.stored(name).flatten().double().abs().argsort(descending=True, stable=True)
        changes[name] = replace(change, indices=order[: len(change.indices)].sort().values.numpy())
    return replace(patch, changes=changes, recipe={"method": "magnitude"}, **_UNFITTED)


_UNFITTED: dict = {"edited": {}, "missed": {}, "norms": {}}
