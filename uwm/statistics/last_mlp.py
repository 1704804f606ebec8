"""A tower whose last MLP sees the pooled token alone, where that gives the same embeddings bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..models import Model
from .batches import embed_inputs
from .room import can_run_out

FEW = 16  # below so many rows a product rounds otherwise than one of many, so it is not tried


def embed_pooled(model: Model, tower: str, inputs: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Embeddings as `uwm.statistics.batches.embed_inputs` gives them, [n, dim], on the CPU with less work.

    The last block's MLP is most of the block's work, and the embedding reads what it writes at one token. A
    product of fewer rows may round otherwise, or a family may use the MLP in another way. So the first batch of each
    size goes through the tower in both ways, and batches of this size take the short way only if it gave the same bits.

    Args:
        model: Patched or not.
        tower: ``text`` or ``vision``.
        inputs, mask: As in `embed_inputs`, n of them.
    """
    able = len(inputs) >= FEW and not can_run_out(model.device) and tower in model.editable
    pair = model.last_mlp(tower) if able else None
    known = (tower, len(inputs))
    if pair is None or pair[0].block is None or not model.pooled_alone.get(known, True):
        return embed_inputs(model, inputs, mask)
    layer = model.owner(pair[0])
    if known in model.pooled_alone:
        with _pooled_token(model, tower, layer, len(inputs), mask):
            return embed_inputs(model, inputs, mask)
    expected = embed_inputs(model, inputs, mask)
    found = None
    try:
        with _pooled_token(model, tower, layer, len(inputs), mask) as called:
            found = embed_inputs(model, inputs, mask)
    except RuntimeError:
        called = [True]  # shapes that do not fit: the MLP's output is not added to the stream alone
    if called:  # it is not where the work of the last block is kept
        model.pooled_alone[known] = found is not None and found.equal(expected)
    return expected


@contextmanager
def _pooled_token(
    model: Model, tower: str, layer: nn.Module, samples: int, mask: torch.Tensor | None
) -> Iterator[list[bool]]:
    """Give a layer its input [samples, tokens, in] at the pooled token alone, [samples, 1, in], while the body runs.

    What the MLP writes is then added to the stream of every token, and is right at the pooled one.

    Yields:
        One item for each time that it was done.
    """
    done: list[bool] = []

    def choose(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        x = args[0] if args else None
        if not isinstance(x, torch.Tensor) or x.ndim != 3 or len(x) != samples:
            return None
        index = model.pooled(tower, mask, x.shape[1])
        if index is None:
            return None
        done.append(True)
        return (x[torch.arange(samples), index.expand(samples)][:, None], *args[1:])

    handle = layer.register_forward_pre_hook(choose)
    try:
        yield done
    finally:
        handle.remove()
