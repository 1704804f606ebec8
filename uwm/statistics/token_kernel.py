"""Norm and spread over the tokens in one reading of the input: a Triton kernel, for CUDA devices."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

TILE = (32, 64, 4)  # tokens and channels of a tile, and warps: the fastest of those tried on an H200
MASKED_TILE = (16, 128, 2)  # the same for captions


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

    A place sums what its tokens are apart from its first one, so that a mean that is large against the spread costs no
    precision.
    """
    sample, columns = tl.program_id(0), tl.program_id(1) * C + tl.arange(0, C)
    rows, within = tl.arange(0, T), (columns < width)[None, :]
    x += sample.to(tl.int64) * of_sample + rows[:, None] * of_token + columns[None, :]
    mask += sample * tokens
    whole = 0 if MASKED else tokens // T * T  # tokens of the tiles in which all of them count
    begin = tl.load(x, mask=within & (rows < whole)[:, None], other=0).to(tl.float32)
    sums, squares = tl.zeros([T, C], tl.float32), tl.zeros([T, C], tl.float32)
    seen = tl.zeros([T], tl.float32) + whole // T  # tokens of each place
    for first in tl.range(T, whole, T, num_stages=3):
        apart = tl.load(x + first * of_token, mask=within, other=0).to(tl.float32) - begin
        sums += apart
        squares += apart * apart
    for first in range(whole, tokens, T):
        counts = first + rows < tokens
        if MASKED:
            counts = counts & (tl.load(mask + first + rows, mask=counts, other=0) > 0)
        values = tl.load(x + first * of_token, mask=within & counts[:, None], other=0).to(tl.float32)
        begin = tl.where((counts & (seen == 0))[:, None], values, begin)
        apart = tl.where(counts[:, None], values - begin, 0)
        sums += apart
        squares += apart * apart
        seen += counts.to(tl.float32)
    norms, spread, count = _joined(begin, sums, squares, seen)
    place = sample * width + columns
    tl.store(norm + place, norms, mask=columns < width)
    tl.store(std + place, tl.sqrt(spread / tl.maximum(count - 1, 1)), mask=columns < width)
    tl.store(counted + sample, count.to(tl.int32))


@triton.jit
def _joined(begin, sums, squares, seen):  # type: ignore[no-untyped-def]
    """Of all places of a tile together: the norm and the sum of squared deviations [C], and how many tokens.

    The places are joined as Chan, Golub and LeVeque (1983) do.
    """
    means = sums / tl.maximum(seen, 1)[:, None]
    squares -= sums * means
    count = tl.sum(seen, 0)
    middle = tl.sum(begin, 0) / tl.maximum(tl.sum((seen > 0).to(tl.float32), 0), 1)
    means += begin - middle[None, :]  # of places without a token no matter what
    mean = tl.sum(means * seen[:, None], 0) / tl.maximum(count, 1)
    apart = means - mean[None, :]
    spread = tl.sum(squares + seen[:, None] * apart * apart, 0)
    spread = tl.where(spread < 0, 0, spread)  # by rounding; NaN stays
    mean += middle
    return tl.sqrt(spread + count * mean * mean), spread, count


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
    masked = mask is not None
    at_once, channels, warps = MASKED_TILE if masked else TILE
    with torch.cuda.device_of(x):  # Triton runs on the current device, which --device cuda:1 does not make it
        _kernel[samples, triton.cdiv(width, channels)](
            x, flags, norm, std, counted, tokens, width, x.stride(0), x.stride(1), masked, at_once, channels,
            num_warps=warps,
        )  # fmt: skip
    return norm, std, counted
