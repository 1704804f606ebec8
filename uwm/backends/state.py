"""Where a training run is, on disk: what a killed run needs to go on to the same end."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import records
from ..errors import BadInput

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


def load_state(path: Path, key: str) -> State | None:
    """What `save_state` wrote, or None where there is nothing. Raises BadInput for another run's, and for a link."""
    if path.is_symlink():
        raise BadInput(f"{path}: is a link, which uwm never makes; remove it")
    if not path.exists():
        return None
    tensors, about = records.read(path, "training")
    if about["key"] != key:
        raise BadInput(
            f"{path}: belongs to a run of another model, set or settings; finish that one, or remove the file and "
            "start anew"
        )
    state = State(**{name: about[name] for name in _PLAIN}, best_value=float(about["best_value"]))
    for name, tensor in tensors.items():
        group, _, rest = name.partition("/")
        target = getattr(state, group) if group in _GROUPS else state.snapshots.setdefault(int(group), {})
        target[rest] = tensor
    return state
