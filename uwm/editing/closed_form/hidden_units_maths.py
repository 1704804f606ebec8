"""Hidden units of an MLP that answer to the unsafe side: found by paired effect size, then scaled down.

The effect size is Cohen's d for paired samples (d_z; Cohen 1988, section 2.3.5): the mean of the differences unsafe −
safe, divided by their standard deviation. A unit is scaled through its column of fc2, by what it writes.
"""

from __future__ import annotations

import torch

from ...errors import BadInput, InvalidResult

CONSTANT = 1e-9  # a spread below this share of the activations is rounding


def paired_effect_sizes(safe: torch.Tensor, unsafe: torch.Tensor) -> torch.Tensor:
    """Effect size of every hidden unit, float64 [hidden].

    Positive where the unit is more active on the unsafe side. A unit whose difference does not vary (a dead one) says
    nothing and gets 0.

    Args:
        safe, unsafe: Inputs of fc2 [pairs, hidden]; row p of both is the same pair.

    Raises:
        BadInput: The sides are of different length.
        InvalidResult: Fewer than two pairs.
    """
    if len(safe) != len(unsafe):
        raise BadInput(f"{len(safe)} safe and {len(unsafe)} unsafe samples; effect sizes need pairs")
    if len(safe) < 2:
        raise InvalidResult(f"effect sizes need at least two pairs; {len(safe)} were seen")
    difference = unsafe.double() - safe.double()
    spread = difference.std(0)
    size = torch.stack([safe.double().abs().amax(0), unsafe.double().abs().amax(0)]).amax(0)
    return torch.where(spread > CONSTANT * size, difference.mean(0) / spread, 0)


def top_units(effects: torch.Tensor, share: float) -> torch.Tensor:
    """The units with the greatest positive effect, sorted int64 [k]; k = ⌊share · hidden⌋, at least 1.

    Of equal effects the first units are chosen. Units without a positive effect never are, so there may be fewer.

    Raises:
        BadInput: A share outside (0, 1].
        InvalidResult: No unit has a positive effect.
    """
    if not 0 < share <= 1:
        raise BadInput(f"a share of {share:g} of the hidden units: it must be above 0 and at most 1")
    order = effects.argsort(descending=True, stable=True)[: max(1, int(share * len(effects)))]
    chosen = order[effects[order] > 0]
    if not len(chosen):
        raise InvalidResult("no hidden unit is more active on the unsafe side: there is nothing to scale")
    return chosen.sort().values


def column_entries(units: torch.Tensor, out: int, hidden: int) -> torch.Tensor:
    """Flat indices of the columns of fc2 [out, hidden] that these units write with, sorted int64 [out · k]."""
    return (torch.arange(out)[:, None] * hidden + units.cpu().sort().values).flatten()
