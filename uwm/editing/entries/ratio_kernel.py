"""What UWM's score keeps of pairs and multiplies, in two operations in place of fifty: Triton, for CUDA devices."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...statistics.channel_norms import TokenStatistics
from .columns import CONSTANT

CHANNELS = 1024  # of a block


@triton.jit
def _ratios(  # type: ignore[no-untyped-def]
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
        _ratios[pairs, triton.cdiv(width, CHANNELS)](
            *sides, zero_columns.view(torch.uint8), kept, counts, width, kept.stride(0), epsilon, CONSTANT, CHANNELS
        )


@triton.jit
def _factors(a, kept, silent, out, width, of_side, of_value, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """One pair; C of its rows, and C of its channels."""
    pair, places = tl.program_id(0).to(tl.int64), tl.program_id(1) * C + tl.arange(0, C)
    inside = places < out
    rows = a + pair * out + places
    safe, unsafe = tl.load(rows, mask=inside, other=0), tl.load(rows + of_side, mask=inside, other=0)
    fit = (safe > 0) & (unsafe > 0)
    tl.store(rows, fit.to(a.dtype.element_ty), mask=inside)
    tl.store(rows + of_side, tl.where(fit, unsafe / safe, 0), mask=inside)
    tl.atomic_add(silent + places, (fit == 0).to(silent.dtype.element_ty), mask=inside & (fit == 0))
    inside = places < width
    columns = kept + pair * width + places
    ratio = tl.load(columns + 2 * of_value, mask=inside, other=0)
    tl.store(columns + of_value, (ratio == 0).to(kept.dtype.element_ty), mask=inside)


def put_factors(a: torch.Tensor, kept: torch.Tensor, silent: torch.Tensor) -> None:
    """As `columns.put_factors`; `a`, and each of the three [pairs, in] of `kept`, lie in one piece."""
    (_, pairs, out), width = a.shape, kept.shape[2]
    with torch.cuda.device_of(kept):
        _factors[pairs, triton.cdiv(max(out, width), CHANNELS)](
            a, kept, silent, out, width, a.stride(0), kept.stride(0), CHANNELS
        )
