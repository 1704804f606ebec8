"""Norm and spread over the tokens in one reading of the input: a Triton kernel, for CUDA devices."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

TOKENS, CHANNELS = 32, 64  # of a tile


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
    """One sample and C of its channels: every T-th token goes to the same place of a tile, which sums it up.

    Mean and squares of a place are of what its tokens are apart from its first one, so that a mean that is large
    against the spread costs no precision (Welford, 1962); the places are joined as Chan, Golub and LeVeque (1983) do.
    """
    sample, columns = tl.program_id(0), tl.program_id(1) * C + tl.arange(0, C)
    x += sample.to(tl.int64) * of_sample
    begin, means, squares = tl.zeros([T, C], tl.float32), tl.zeros([T, C], tl.float32), tl.zeros([T, C], tl.float32)
    seen = tl.zeros([T], tl.float32)  # tokens of each place
    for first in range(0, tokens, T):
        values, inside, counts = _tile(x, mask + sample * tokens, first, columns, tokens, width, of_token, MASKED, T)
        begin = tl.where(inside & (seen == 0)[:, None], values, begin)
        seen += counts.to(tl.float32)
        share = (1 / tl.maximum(seen, 1))[:, None]
        apart = tl.where(inside, values - begin - means, 0)
        means += apart * share
        squares += apart * apart * (1 - share)
    count = tl.sum(seen, 0)
    middle = tl.sum(begin, 0) / tl.maximum(tl.sum((seen > 0).to(tl.float32), 0), 1)
    means += begin - middle[None, :]  # of places without a token no matter what
    mean = tl.sum(means * seen[:, None], 0) / tl.maximum(count, 1)
    apart = means - mean[None, :]
    spread = tl.sum(squares + seen[:, None] * apart * apart, 0)
    mean += middle
    place = sample * width + columns
    tl.store(norm + place, tl.sqrt(spread + count * mean * mean), mask=columns < width)
    tl.store(std + place, tl.sqrt(spread / tl.maximum(count - 1, 1)), mask=columns < width)
    tl.store(counted + sample, count.to(tl.int32))


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
    flags = counted if mask is None else (mask.int() if mask.dtype == torch.bool else mask).contiguous()
    with torch.cuda.device_of(x):  # Triton runs on the current device, which --device cuda:1 does not make it
        _kernel[samples, triton.cdiv(width, CHANNELS)](
            x, flags, norm, std, counted, tokens, width, x.stride(0), x.stride(1), mask is not None, TOKENS, CHANNELS
        )
    return norm, std, counted
