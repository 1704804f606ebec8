"""Column factors of UWM's score, from the token statistics of a layer's input (UWM, section 4, Eq. 8 and 9)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module

import torch

from ...statistics.channel_norms import TokenStatistics
from ...statistics.kernels import tried

CONSTANT = 1e-6  # σ below this share of the channel's norm is rounding, not spread


def column_factors(
    sides: Sequence[TokenStatistics], zero_columns: torch.Tensor, epsilon: float, counts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Norms n and column factors n / σ, float64 [sides, samples, in] each.

    A factor that says nothing is 0, and is counted: of a sample of one token, of a dead or constant channel.

    Args:
        sides: Row p of each is the same pair.
        zero_columns: Which columns of W are zero, bool [in]; their factors are 0 too. Its device is the results'.
        epsilon: Added to σ.
        counts: What is added to, int64 [3]: pairs with one token, their dead channels, and their constant ones.
    """
    device = zero_columns.device
    norm = torch.stack([side.norm for side in sides]).to(device).double()
    std = torch.stack([side.std for side in sides]).to(device).double()
    spread, dead = std > CONSTANT * norm, (norm == 0).any(0)
    one = torch.stack([side.tokens.to(device) < 2 for side in sides]).any(0)
    counts += torch.stack([found.sum() for found in (one, dead, ~(spread.all(0) | dead | one[:, None]))])
    return norm, torch.where(spread & ~zero_columns, norm / (std + epsilon), 0)


def put_ratios(
    safe: TokenStatistics,
    unsafe: TokenStatistics,
    zero_columns: torch.Tensor,
    epsilon: float,
    kept: torch.Tensor,
    counts: torch.Tensor,
) -> None:
    """Write norms and ratios of column factors to `kept` [3, pairs, in]: n safe, n unsafe, unsafe by safe factor.

    Where either factor is 0 the ratio is. The rest as in `column_factors`.
    """
    norms, factors = column_factors((safe, unsafe), zero_columns, epsilon, counts)
    kept[:2] = norms
    kept[2] = torch.where((factors > 0).all(0), factors[1] / factors[0], 0)


def ratios_on(device: torch.device) -> Callable[..., None]:
    """`put_ratios`, or what does the same on this device in one operation."""
    return (_kernel() if device.type == "cuda" else None) or put_ratios


@cache
def _kernel() -> Callable[..., None] | None:
    """`ratio_kernel.put_ratios` where it works on this machine."""
    return tried(lambda: import_module(f"{__package__}.ratio_kernel").put_ratios, agrees, "cuda")


def agrees(found: Callable[..., None], device: str, kept_in: torch.dtype = torch.float32) -> bool:
    """Whether it makes of a few pairs on a device what `put_ratios` makes of them, odd cases among them."""
    values = torch.arange(4 * 3 * 1100, dtype=torch.float32).view(4, 3, 1100).sin().add(1.5)
    values[:, :, :8] *= torch.tensor([0, 1e-7, 1, 1, 1, 1, 1, 1])  # norms of 0, and σ of 0
    values[1, 0, 3], values[2, 1, 4], values[3, 2, 5], values[3, 1, 6] = 0, 0, 0, 1e-8
    zero_columns = torch.arange(1100) % 50 == 7
    tokens = torch.tensor([[1, 2, 50], [5, 6, 7]], dtype=torch.int32)
    results: list[tuple[torch.Tensor, list[int]]] = []
    for put, where in ((put_ratios, "cpu"), (found, device)):
        norms, std = values.to(where)[::2], values.to(where)[1::2]
        safe, unsafe = (TokenStatistics(norms[n], std[n], tokens[n].to(where)) for n in (0, 1))
        kept = torch.zeros(3, 5, 1100, dtype=kept_in, device=where)
        counts = torch.zeros(3, dtype=torch.int64, device=where)
        put(safe, unsafe, zero_columns.to(where), 1e-8, kept[:, 1:4], counts)
        results.append((kept.cpu(), counts.tolist()))
    (expected, counted), (same, equal) = results
    return counted == equal and torch.allclose(same, expected, rtol=1e-6, atol=0)
