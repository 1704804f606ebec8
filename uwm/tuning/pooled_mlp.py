"""Edits of a tower's last MLP and projection, worked out at the pooled token alone."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..editing.changes import Change, Scale
from ..editing.live import edited
from ..models import Model
from ..statistics.passes import RESIDUAL
from ..weights import WeightId

CLOSE = 1e-4  # of an embedding's length: what the short way may differ from the tower
PROBE = 0.5  # the factor of both matrices in the edit by which the short way is compared with the tower
ACTIVATIONS: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    lambda x: x * torch.sigmoid(1.702 * x),
    F.gelu,
    lambda x: F.gelu(x, approximate="tanh"),
    F.relu,
    F.silu,
)

Now = Mapping[WeightId, torch.Tensor]  # the tensors that changes are of, as they are stored

logger = logging.getLogger(__name__)


def pooled_weights(model: Model, tower: str) -> dict[WeightId, str]:
    """What has to be seen at the pooled token -> its part: inputs of both matrices, and the stream after the MLP.

    Empty where the tower has no such MLP.
    """
    pair = None if tower not in model.editable else model.last_mlp(tower)
    if pair is None or model.dtype != torch.float32:
        return {}
    seen = {pair[0]: "x", pair[1]: "hidden"}
    return seen if pair[0].block is None else {**seen, WeightId(tower, pair[0].block, RESIDUAL): "stream"}


@dataclass(frozen=True)
class PooledMlp:
    """The last MLP of a tower and what follows it, at the pooled token of every sample.

    The embedding is P · norm(s + Δ), s the residual stream after the unedited MLP, Δ how much an edit changes what the
    MLP writes, norm the final LayerNorm and P the projection where there are such; of an attention-pooling head it is
    s + Δ. That this is so, and which activation it is, is found by comparing with the tower itself: unedited in `of`,
    edited in `agrees`.

    Attributes:
        x: Inputs of W₁, [n, width].
        hidden: Inputs of W₂ in the unedited model, [n, hidden].
        stream: s, [n, width].
        weights: The unedited tensors that a sample meets from here on, float32: those of the MLP and what follows it.
    """

    model: Model
    tower: str
    pair: tuple[WeightId, WeightId]
    x: torch.Tensor
    hidden: torch.Tensor
    stream: torch.Tensor
    weights: Mapping[WeightId, torch.Tensor]
    activation: Callable[[torch.Tensor], torch.Tensor]

    @property
    def own(self) -> tuple[WeightId, ...]:
        """The tensors of the MLP."""
        return tuple(name for matrix in self.pair for name in (matrix, _bias(matrix)))

    @classmethod
    @torch.no_grad()
    def of(cls, model: Model, tower: str, rows: Mapping[WeightId, torch.Tensor], embeddings: Any) -> PooledMlp | None:
        """From the unedited model; None where the tower is another than described.

        Args:
            rows: What was seen of each of `pooled_weights`, [n, width] each.
            embeddings: Of the same samples, not normalised, [n, dim].
        """
        parts = {part: rows[name] for name, part in pooled_weights(model, tower).items()}
        pair = model.last_mlp(tower) if parts else None
        if pair is None:
            return None
        names = [*(name for matrix in pair for name in (matrix, _bias(matrix))), *_late(pair)]
        weights = {name: model.parameter(name).float().cpu().clone() for name in names if name in model.tensors}
        stream = parts.get("stream", embeddings)
        for activation in ACTIVATIONS:
            made = cls(model, tower, pair, parts["x"], parts["hidden"], stream, weights, activation)
            if made._holds(embeddings):
                return made
        return None

    def probe(self) -> dict[WeightId, Change]:
        """An edit of both matrices; `agrees` compares what it does.

        In blocks that end with a LayerNorm, or scale what the MLP writes, it does something else than described here,
        which the unedited embeddings do not show.
        """
        return {name: Scale(np.arange(math.prod(self.weights[name].shape)), PROBE) for name in self.pair}

    def agrees(self, embeddings: torch.Tensor) -> bool:
        """Whether the tower's own embeddings of the first samples come out, [first, dim], edited as `probe` says."""
        found = self.embed(self.probe())[: len(embeddings)]
        if found.shape == embeddings.shape and _close(found, embeddings):
            return True
        logger.info("the %s tower is not worked out at the pooled token; edits run its blocks", self.tower)
        return False

    def covers(self, names: Iterable[WeightId]) -> bool:
        """Whether an edit of these tensors changes nothing before this MLP."""
        return {*names} <= {*self.weights}

    @torch.no_grad()
    def embed(self, changes: Mapping[WeightId, Change]) -> torch.Tensor:
        """Embeddings under these changes, not normalised, float32 [n, dim]."""
        now = {name: edited(self.model, name, change) for name, change in changes.items()}
        fc1, fc2 = self.pair
        stream, moved = self.stream, None
        units = _touched(changes.get(fc1), self.weights[fc1].shape, 1)
        bias = changes.get(_bias(fc1))
        if bias is not None:
            units = _union(units, _touched(bias, (len(self.weights[fc1]), 1), 1))
        if units is not None:
            moved = self._activated(units, now)
            stream = torch.addmm(stream, moved - self.hidden[:, units], self.weights[fc2][:, units].T)
        columns = _touched(changes.get(fc2), self.weights[fc2].shape, 0)
        if columns is not None:
            step = now[fc2][:, columns].float() - self.weights[fc2][:, columns]
            stream = torch.addmm(stream, self._hidden(columns, units, moved), step.T)
        if _bias(fc2) in changes:
            stream = stream + (now[_bias(fc2)].float() - self.weights[_bias(fc2)])
        return self._read_out(stream, now)

    def _hidden(self, columns: Any, units: Any, moved: torch.Tensor | None) -> torch.Tensor:
        """What hidden units give to some columns of W₂, [n, columns], where some of them moved."""
        found = self.hidden[:, columns]  # a copy, but of all columns
        if moved is None:
            return found
        every = torch.arange(self.hidden.shape[1])
        at, moved_units = every[columns], every[units]
        place = torch.full_like(every, -1).index_copy(0, at, torch.arange(len(at)))[moved_units]
        return found.index_copy(1, place[place >= 0], moved[:, place >= 0])

    def _activated(self, units: Any, now: Now) -> torch.Tensor:
        """What hidden units give now, [n, units]."""
        fc1, tensors = self.pair[0], {**self.weights, **now}
        bias = tensors[_bias(fc1)][units].float() if _bias(fc1) in tensors else None
        return self.activation(F.linear(self.x, tensors[fc1][units].float(), bias))

    def _read_out(self, stream: torch.Tensor, now: Now) -> torch.Tensor:
        """The embedding of a residual stream at the pooled token; after a pooling head there is nothing to read out."""
        if self.pair[0].block is None:
            return stream
        norm, projection = (WeightId(self.tower, None, slot) for slot in ("norm", "proj"))
        tensors = {**self.weights, **{name: value.float() for name, value in now.items() if name not in self.own}}
        if norm in tensors:
            module = self.model.module.get_submodule(self.model.tensors[norm].key.rpartition(".")[0])
            if not isinstance(module, nn.LayerNorm):
                return stream * torch.nan  # another kind of norm is not worked out; nothing will agree with this
            bias = tensors.get(_bias(norm))
            stream = F.layer_norm(stream, module.normalized_shape, tensors[norm], bias, module.eps)
        return (
            F.linear(stream, tensors[projection], tensors.get(_bias(projection))) if projection in tensors else stream
        )

    def _holds(self, embeddings: torch.Tensor) -> bool:
        """Whether the unedited model's own figures come out."""
        fc1, fc2 = self.pair
        if self.hidden.shape[1] != len(self.weights[fc1]) or self.stream.shape[1] != len(self.weights[fc2]):
            return False
        read, own = self._read_out(self.stream, {}), self._activated(slice(None), {})
        return _close(own, self.hidden) and read.shape == embeddings.shape and _close(read, embeddings)


def _close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).norm(dim=1).max() <= CLOSE * expected.norm(dim=1).mean())


def _late(pair: tuple[WeightId, WeightId]) -> list[WeightId]:
    """What follows an MLP; nothing follows that of an attention-pooling head."""
    slots = () if pair[0].block is None else ("norm", "norm.bias", "proj", "proj.bias")
    return [WeightId(pair[0].tower, None, slot) for slot in slots]


def _bias(name: WeightId) -> WeightId:
    return WeightId(name.tower, name.block, f"{name.slot}.bias")


def _touched(change: Change | None, shape: tuple[int, ...], axis: int) -> Any:
    """Rows (axis 1) or columns (axis 0) of a matrix that a change touches; all of them as a slice; None for none."""
    if change is None:
        return None
    touched = change.touched()
    if touched is None:
        return slice(None)
    places = torch.as_tensor(touched)
    return (places // shape[1] if axis == 1 else places % shape[1]).unique()


def _union(first: Any, second: Any) -> Any:
    if first is None or isinstance(second, slice):
        return second
    return first if isinstance(first, slice) else torch.cat([first, second]).unique()
