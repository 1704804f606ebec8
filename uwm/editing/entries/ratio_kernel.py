"""What UWM's score keeps of pairs, in one operation in place of some forty: a Triton kernel, for CUDA devices."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...statistics.channel_norms import TokenStatistics
from .columns import CONSTANT

CHANNELS = 1024  # of a block


@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    norm_safe,
    std_safe,
    tokens_safe,
    norm_unsafe,
    std_unsafe,
    tokens_unsafe,
    zero_columns,
    kept,
    counts,
    width,
    of_value,
    EPSILON: tl.constexpr,
    CONSTANT: tl.constexpr,
    C: tl.constexpr,
):
    """One pair and C of its channels."""
    pair, columns = tl.program_id(0), tl.program_id(1) * C + tl.arange(0, C)
    inside = columns < width
    place = pair.to(tl.int64) * width + columns
    safe, unsafe = tl.load(norm_safe + place, mask=inside, other=1), tl.load(norm_unsafe + place, mask=inside, other=1)
    tl.store(kept + place, safe, mask=inside)
    tl.store(kept + of_value + place, unsafe, mask=inside)
    safe, unsafe = safe.to(tl.float64), unsafe.to(tl.float64)
    spread_safe = tl.load(std_safe + place, mask=inside, other=1).to(tl.float64)
    spread_unsafe = tl.load(std_unsafe + place, mask=inside, other=1).to(tl.float64)
    one = (tl.load(tokens_safe + pair) < 2) | (tl.load(tokens_unsafe + pair) < 2)
    dead = (safe == 0) | (unsafe == 0)
    varies = (spread_safe > CONSTANT * safe) & (spread_unsafe > CONSTANT * unsafe)
    fit = varies & (safe > 0) & (unsafe > 0) & (tl.load(zero_columns + columns, mask=inside, other=0) == 0)
    factor_safe = tl.where(fit, safe / (spread_safe + EPSILON), 1)
    ratio = tl.where(fit, unsafe / (spread_unsafe + EPSILON) / factor_safe, 0)
    tl.store(kept + 2 * of_value + place, ratio.to(kept.dtype.element_ty), mask=inside)
    constant = inside & (varies == 0) & (dead == 0) & (one == 0)
    tl.atomic_add(counts, (one & (tl.program_id(1) == 0)).to(tl.int64))
    tl.atomic_add(counts + 1, tl.sum((dead & inside).to(tl.int64), 0))
    tl.atomic_add(counts + 2, tl.sum(constant.to(tl.int64), 0))


def put_ratios(
    safe: TokenStatistics,
    unsafe: TokenStatistics,
    zero_columns: torch.Tensor,
    epsilon: float,
    kept: torch.Tensor,
    counts: torch.Tensor,
) -> None:
    """As `columns.put_ratios`, of float32 statistics; each of the three [pairs, in] of `kept` lies in one piece."""
    pairs, width = safe.norm.shape
    sides = (part.contiguous() for side in (safe, unsafe) for part in (side.norm, side.std, side.tokens))
    with torch.cuda.device_of(kept):
        _kernel[pairs, triton.cdiv(width, CHANNELS)](
            *sides, zero_columns.view(torch.uint8), kept, counts, width, kept.stride(0), epsilon, CONSTANT, CHANNELS
        )
