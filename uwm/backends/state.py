"""Where a training run is, on disk: what a killed run needs to go on to the same end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import records
from ..errors import BadInput
from ..schema import (
    COUNT,
    NUMBER,
    SHA256,
    Forms,
    TensorForm,
    Unexpected,
    each,
    holds,
    keyed,
    listed,
    mapped,
    whole,
    within,
)

ANEW = "remove the file and start anew"
MOMENTS = ("mean", "square")  # of Adam, beside the number of its steps

Tensors = dict[str, torch.Tensor]


@dataclass
class State:
    """Of a run between two steps.

    Attributes:
        step: Steps done, over all epochs.
        seconds: Time spent in the epoch underway.
        sums: Loss term -> sum over the pairs of the epoch underway; ``pairs`` counts them.
        history: The entries of the finished epochs.
        best_epoch, best_value: By validation, lower is better.
        adapter, adam, best: LoRA's matrices, Adam's moments, LoRA's matrices of the best epoch.
        snapshots: Epoch -> LoRA's matrices.
    """

    step: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best_value: float = float("inf")
    adapter: Tensors = field(default_factory=dict)
    adam: Tensors = field(default_factory=dict)
    best: Tensors = field(default_factory=dict)
    snapshots: dict[int, Tensors] = field(default_factory=dict)


_PLAIN = ("step", "seconds", "sums", "history", "best_epoch")
_GROUPS = ("adapter", "adam", "best")


def save_state(path: Path, key: str, state: State) -> None:
    """Write the state atomically; `key` says which run it belongs to."""
    tensors = {f"{group}/{name}": t for group in _GROUPS for name, t in getattr(state, group).items()}
    tensors |= {f"{epoch}/{name}": t for epoch, found in state.snapshots.items() for name, t in found.items()}
    about = {name: getattr(state, name) for name in _PLAIN}
    records.write(path, "training", tensors, {"key": key, "best_value": repr(state.best_value), **about})


def load_state(path: Path, key: str, trained: Mapping[str, torch.Tensor]) -> State | None:
    """What `save_state` wrote, or None where there is nothing.

    Args:
        path: The file.
        key: Of the run.
        trained: Name -> a tensor of the shape that is trained.

    Raises:
        BadInput: Of another run, a link, damaged, or of other tensors than are trained.
    """
    if path.is_symlink():
        raise BadInput(f"{path}: is a link, which uwm never makes; remove it")
    if not path.exists():
        return None
    if _other_key(path) not in (None, key):  # told as such before its tensors are looked at
        raise BadInput(f"{path}: belongs to a run of another model, set or settings; finish that one, or {ANEW}")
    form = records.Form(each(keyed(PARTS), _counted), partial(_tensors, trained), ANEW)
    tensors, about = records.read(path, "training", form)
    state = State(**{name: about[name] for name in _PLAIN}, best_value=float(about["best_value"]))
    state.history = [{name: entry[name] for name in (*EPOCH, "seconds")} for entry in state.history]  # as it was told
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise BadInput(f"{path}: damaged: tensor {name}: expected finite values, found NaN or infinity; {ANEW}")
        group, _, rest = name.partition("/")
        target = getattr(state, group) if group in _GROUPS else state.snapshots.setdefault(int(group), {})
        target[rest] = tensor
    _demand_whole(path, state, trained)
    return state


def _other_key(path: Path) -> str | None:
    """The key of a training state, whatever else is in it; None where it is none."""
    about = records.describe(path) or {}
    key = about.get("key") if about.get("kind") == "training" else None
    return key if isinstance(key, str) else None


# ---------------------------------------------------------------- what a file of it must hold


def _counted(about: Mapping[str, Any], place: str) -> None:
    """Epochs count from 1, and the best is one of them."""
    epochs, best = [entry["epoch"] for entry in about["history"]], about["best_epoch"]
    if epochs != [*range(1, len(epochs) + 1)]:
        raise Unexpected("history", "the epochs 1, 2, 3, …", epochs)
    if best not in (epochs or [0]):
        raise Unexpected("best_epoch", "one of the epochs of history", best)


def _tensors(trained: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> tuple[Forms, Forms]:
    """What is trained now and at its best; Adam's moments, and what was trained after earlier epochs."""
    own = {name: TensorForm(("float32",), tuple(tensor.shape)) for name, tensor in trained.items()}
    groups = ["adapter", *(["best"] if about["best_epoch"] else [])]
    needed = {f"{group}/{name}": form for group in groups for name, form in own.items()}
    others = [*(f"adam/{moment}" for moment in MOMENTS), *range(1, len(about["history"]) + 1)]
    optional = {f"{group}/{name}": form for group in others for name, form in own.items()}
    return needed, optional | {f"adam/step/{name}": TensorForm(("float32",), ()) for name in own}


def _demand_whole(path: Path, state: State, trained: Mapping[str, torch.Tensor]) -> None:
    """Refuse a part of an epoch's tensors, or of Adam's moments of one tensor. Raises BadInput."""
    lacking = [f"{epoch}/{name}" for epoch, held in state.snapshots.items() for name in trained if name not in held]
    for name in trained:
        there = [f"{moment}/{name}" in state.adam for moment in (*MOMENTS, "step")]
        lacking += [f"adam of {name}"] if any(there) and not all(there) else []
    if lacking:
        raise BadInput(f"{path}: damaged: tensor {lacking[0]}: expected to be there, found none; {ANEW}")


def _is_value(value: Any) -> bool:
    try:
        return isinstance(value, str) and not math.isnan(float(value))
    except ValueError:
        return False


SECONDS = within(0, 1e12)
EPOCH = {"epoch": whole(1), "pairs": COUNT, "loss": NUMBER, "terms": mapped(NUMBER), "validation": NUMBER}
PARTS = {
    "key": SHA256,
    "step": COUNT,
    "seconds": SECONDS,
    "sums": keyed({}, {"pairs": within(0, 1e15)}, NUMBER),
    "history": listed(keyed({**EPOCH, "seconds": SECONDS})),
    "best_epoch": COUNT,
    "best_value": holds("a number in a text", _is_value),
}
