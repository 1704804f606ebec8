"""Norm and spread over the tokens in one reading of the input: a Triton kernel, for CUDA devices."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

TOKENS, CHANNELS = 64, 64  # of a tile


@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    x,
    mask,
    norm,
    std,
    counted,
    tokens,
    width,
    of_sample,
    of_token,
    MASKED: tl.constexpr,
    T: tl.constexpr,
    C: tl.constexpr,
):
    """One sample and C of its channels: the mean first, then the deviations, while the cache has the input."""
    sample, columns = tl.program_id(0), tl.program_id(1) * C + tl.arange(0, C)
    x += sample.to(tl.int64) * of_sample
    total, count = tl.zeros([T, C], tl.float32), 0
    for first in range(0, tokens, T):
        values, inside, counts = _tile(x, mask + sample * tokens, first, columns, tokens, width, of_token, MASKED, T)
        total += values
        count += tl.sum(counts.to(tl.int32), 0)
    mean = tl.sum(total, 0) / tl.maximum(count, 1)
    apart = tl.zeros([T, C], tl.float32)
    for first in range(0, tokens, T):
        values, inside, counts = _tile(x, mask + sample * tokens, first, columns, tokens, width, of_token, MASKED, T)
        values = tl.where(inside, values - mean[None, :], 0)
        apart += values * values
    squares = tl.sum(apart, 0)
    place = sample * width + columns
    tl.store(norm + place, tl.sqrt(squares + count * mean * mean), mask=columns < width)
    tl.store(std + place, tl.sqrt(squares / tl.maximum(count - 1, 1)), mask=columns < width)
    tl.store(counted + sample, count)


@triton.jit
def _tile(x, mask, first, columns, tokens, width, of_token, MASKED: tl.constexpr, T: tl.constexpr):  # type: ignore[no-untyped-def]
    """T tokens of some channels, 0 where they do not count; which entries do, and which tokens."""
    rows = first + tl.arange(0, T)
    counts = rows < tokens
    if MASKED:
        counts = counts & (tl.load(mask + rows, mask=counts, other=0) > 0)
    inside = counts[:, None] & (columns < width)[None, :]
    values = tl.load(x + rows[:, None] * of_token + columns[None, :], mask=inside, other=0)
    return values.to(tl.float32), inside, counts


def norm_and_std(x: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Norm and unbiased standard deviation over the tokens that count, and how many these are.

    Args:
        x: [samples, tokens, in], of any floating dtype; summed in float32.
        mask: 1 for tokens that count, [samples, tokens]; all of them without one.

    Returns:
        float32 [samples, in] twice, int32 [samples]. Where no token counts all are 0.
    """
    samples, tokens, width = x.shape
    x = x if x.stride(2) == 1 else x.contiguous()
    norm, std = (torch.empty(samples, width, device=x.device) for _ in range(2))
    counted = torch.empty(samples, dtype=torch.int32, device=x.device)
    flags = counted if mask is None else mask.to(torch.int32).contiguous()
    with torch.cuda.device_of(x):  # Triton runs on the current device, which --device cuda:1 does not make it
        _kernel[samples, triton.cdiv(width, CHANNELS)](
            x, flags, norm, std, counted, tokens, width, x.stride(0), x.stride(1), mask is not None, TOKENS, CHANNELS
        )
    return norm, std, counted
