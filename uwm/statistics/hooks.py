"""Observe the input of layers and the output of blocks. Nothing is changed, kept or left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import InvalidResult
from ..models import Model
from ..weights import WeightId

Sink = Callable[[WeightId, torch.Tensor], None]


@contextmanager
def observe(layers: Mapping[WeightId, nn.Module], sink: Sink) -> Iterator[None]:
    """Call ``sink(weight, X)`` with every layer's input X [samples, tokens, in] while the body runs.

    A layer is a `nn.Linear`, or the `nn.MultiheadAttention` (or its `out_proj`) that holds the weight. That module
    never calls its own `out_proj` (pytorch#78109), so its forward is replaced, inside this context only, by an
    equal one that does.

    Args:
        layers: Each weight and the module that owns it.
        sink: Called once a layer and forward pass.
    """
    handles, replaced = [], []
    try:
        for weight, module in layers.items():
            attention = module if isinstance(module, nn.MultiheadAttention) else None
            target = module
            if attention is not None and weight.slot == "out_proj":
                target = attention.out_proj
                if "forward" not in vars(attention):
                    attention.forward = MethodType(_attend, attention)  # type: ignore[method-assign]
                    replaced.append(attention)
            swap = attention is not None and not attention.batch_first
            handles.append(target.register_forward_pre_hook(_hook(weight, sink, swap), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for attention in replaced:
            del attention.forward


@contextmanager
def observe_outputs(modules: Mapping[WeightId, nn.Module], sink: Sink) -> Iterator[None]:
    """Call ``sink(name, Y)`` with every module's output Y [samples, tokens, out] while the body runs.

    Args:
        modules: A name for each module, such as the name of a block's residual stream. Where a module gives a tuple, as
            the blocks of transformers 4 do, its first item is the output.
        sink: Called once a module and forward pass.
    """
    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(_output_hook(name, sink)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def cut_outputs(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect a module's outputs, each as a leaf to differentiate by; what came before it gets no gradient."""
    outputs: list[torch.Tensor] = []

    def cut(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        outputs.append(output.detach().requires_grad_(True))
        return outputs[-1]

    handle = module.register_forward_hook(cut)
    try:
        yield outputs
    finally:
        handle.remove()


@contextmanager
def kept_outputs(module: nn.Module) -> Iterator[list[Any]]:
    """Collect a module's outputs as they are; of a tuple, as the blocks of transformers 4 give it, its first item."""
    outputs: list[Any] = []

    def keep(module: nn.Module, args: tuple, output: Any) -> None:
        outputs.append((output[0],) if isinstance(output, tuple) else output)

    handle = module.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        handle.remove()


@contextmanager
def skipped(blocks: Sequence[nn.Module], output: Any) -> Iterator[None]:
    """Compute none of the first blocks of a tower while the body runs: each gives what the last of them once gave.

    Args:
        blocks: From the first on, in their order.
        output: From `kept_outputs` of the last one, for the same inputs.
    """
    own = [vars(block).get("forward") for block in blocks]
    try:
        for block in blocks:
            block.forward = lambda *args, **kwargs: output
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward


def _output_hook(name: WeightId, sink: Sink) -> Callable:
    def after(module: nn.Module, args: tuple, output: Any) -> None:
        sink(name, output[0] if isinstance(output, tuple) else output)

    return after


def _hook(weight: WeightId, sink: Sink, swap: bool) -> Callable:
    def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        sink(weight, x.transpose(0, 1) if swap else x)

    return before


def _attend(
    self: nn.MultiheadAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_padding_mask: torch.Tensor | None = None,
    need_weights: bool = True,
    attn_mask: torch.Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[torch.Tensor, None]:
    """nn.MultiheadAttention.forward for a fused projection in eval mode, through `out_proj` as a module."""
    if key_padding_mask is not None or self.in_proj_weight is None:
        raise RuntimeError("observing this attention needs a fused projection and no key padding mask")
    weights = self.in_proj_weight.chunk(3)
    biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
    heads = []
    for x, weight, bias in zip((query, key, value), weights, biases, strict=True):
        y = F.linear(x if self.batch_first else x.transpose(0, 1), weight, bias)  # [samples, tokens, width]
        heads.append(y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2))  # [samples, heads, tokens, head width]
    if attn_mask is not None and attn_mask.ndim == 3:  # [samples · heads, tokens, tokens], as CoCa gives it
        attn_mask = attn_mask.unflatten(0, (-1, self.num_heads))
    mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask=attn_mask).transpose(1, 2).flatten(2)
    mixed = mixed if self.batch_first else mixed.transpose(0, 1)
    return self.out_proj(mixed), None


def block_module(model: Model, weight: WeightId) -> nn.Module:
    """The module of the block that a weight is in: what all of the block's layers lie in."""
    keys = [r.key.split(".") for w, r in model.weights.items() if (w.tower, w.block) == (weight.tower, weight.block)]
    if not keys:
        raise InvalidResult(f"{weight}: the {weight.tower} tower has no block {weight.block}")
    same = [len(set(names)) == 1 for names in zip(*keys, strict=False)]
    return model.module.get_submodule(".".join(keys[0][: same.index(False)]))
