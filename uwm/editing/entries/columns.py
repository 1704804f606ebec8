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
    spread = std > CONSTANT * norm  # nowhere in a sample of one token or in a dead channel
    if device.type != "cpu" or not spread.all():
        dead = (norm == 0).any(0)
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


def put_factors(a: torch.Tensor, kept: torch.Tensor, silent: torch.Tensor) -> None:
    """Make of sums over rows and of what `put_ratios` kept the factors of one product that is added to the score's sum.

    A ratio of φ is the product of a ratio of row sums and one of column factors, or 1 where either of them is 0; of a
    row that is 0 the 1 is only counted.

    Args:
        a: (|W| n)_i of both sides, [2, pairs, out]; becomes 1 where both are above 0, and the ratio there, 0 elsewhere.
        kept: [3, pairs, in]; its second part becomes 1 where the ratio is 0, the factor of the 1 above.
        silent: What is added to, [out]: the pairs of which the row is 0.
    """
    fit = (a > 0).all(0)
    a[1] = torch.where(fit, a[1] / a[0], 0)
    a[0] = fit
    kept[1] = kept[2] == 0
    silent += (~fit).sum(0)


Forms = tuple[Callable[..., None], Callable[..., None]]


def forms_on(device: torch.device) -> Forms:
    """`put_ratios` and `put_factors`, or what does the same on this device in one operation each."""
    return (_kernels() if device.type == "cuda" else None) or (put_ratios, put_factors)


@cache
def _kernels() -> Forms | None:
    """Those of `ratio_kernel` where they work on this machine."""

    def load() -> Forms:
        kernels = import_module(f"{__package__}.ratio_kernel")
        return kernels.put_ratios, kernels.put_factors

    return tried(load, agree, "cuda")


def agree(forms: Forms, device: str, kept_in: torch.dtype = torch.float32) -> bool:
    """Whether they make of a few pairs on a device what the plain forms make of them, odd cases among them."""
    values = torch.arange(4 * 3 * 1100, dtype=torch.float32).view(4, 3, 1100).sin().add(1.5)
    values[:, :, :8] *= torch.tensor([0, 1e-7, 1, 1, 1, 1, 1, 1])  # norms of 0, and σ of 0
    values[1, 0, 3], values[2, 1, 4], values[3, 2, 5], values[3, 1, 6] = 0, 0, 0, 1e-8
    zero_columns = torch.arange(1100) % 50 == 7
    tokens = torch.tensor([[1, 2, 50], [5, 6, 7]], dtype=torch.int32)
    results: list[list[torch.Tensor]] = []
    for (ratios, factors), where in (((put_ratios, put_factors), "cpu"), (forms, device)):
        norms, std = values.to(where)[::2], values.to(where)[1::2]
        safe, unsafe = (TokenStatistics(norms[n], std[n], tokens[n].to(where)) for n in (0, 1))
        kept = torch.zeros(3, 5, 1100, dtype=kept_in, device=where)
        counts = torch.zeros(3, dtype=torch.int64, device=where)
        ratios(safe, unsafe, zero_columns.to(where), 1e-8, kept[:, 1:4], counts)
        a, silent = norms[:, :, :1050].to(kept_in).contiguous(), torch.ones(1050, dtype=kept_in, device=where)
        before = kept.clone()
        factors(a, kept[:, 1:4], silent)
        results.append([found.cpu() for found in (counts, before, kept, a, silent)])
    return all(torch.allclose(same, found, rtol=1e-6, atol=0) for found, same in zip(*results, strict=True))
