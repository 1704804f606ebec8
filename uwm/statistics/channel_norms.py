"""Norm and spread of every channel of a layer's input over the tokens (UWM, section 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from typing import Protocol

import torch

from ..errors import BadInput
from ..weights import WeightId
from .kernels import tried
from .moments import to_double
from .passes import SAFE, Part, Shared

SLAB = 128  # tokens that are summed one after the other in float32; slabs are joined in float64


@dataclass(frozen=True)
class TokenStatistics:
    """Of one layer's input X [tokens, in], for each sample of a batch (UWM, section 4).

    Attributes:
        norm: n_j = ‖X[:, j]‖₂ over the tokens, float32 [samples, in]; not finite where a counted token's value is not.
        std: σ_j, the unbiased standard deviation over the tokens, float32 [samples, in]; 0 where it is undefined.
        tokens: How many tokens each sample has, [samples].
    """

    norm: torch.Tensor
    std: torch.Tensor
    tokens: torch.Tensor


class Counted:
    """Which tokens count of inputs x [samples, tokens, in]: those with mask 1, all of them without a mask.

    Attributes:
        mask: [samples, tokens], or None.
        samples_and_tokens: How many there are, those that do not count included.
        tokens: How many of each sample count, [samples].
        number: The same, float64 [samples, 1].
        unbiased: number / (number − 1), by which a variance over all tokens becomes an unbiased one.
    """

    def __init__(self, x: torch.Tensor, mask: torch.Tensor | None) -> None:
        self.mask, self.samples_and_tokens = mask, x.shape[:2]
        self.tokens = torch.full((len(x),), x.shape[1], device=x.device) if mask is None else mask.sum(1)
        self.number = to_double(self.tokens)[:, None]
        self.unbiased = self.number / (self.number - 1).clamp_min(1)

    @cached_property
    def rows(self) -> list[slice | torch.Tensor]:
        """Of each sample the tokens that count, as an index; a slice where they are the first ones."""
        samples, tokens = self.samples_and_tokens
        if self.mask is None:
            return [slice(tokens)] * samples
        counts, lengths = self.mask > 0, self.tokens.tolist()
        first = (counts == (torch.arange(tokens) < self.tokens[:, None])).all(1).tolist()
        return [slice(length) if first[row] else counts[row] for row, length in enumerate(lengths)]


def token_statistics(
    x: torch.Tensor, mask: torch.Tensor | None = None, counted: Counted | None = None
) -> TokenStatistics:
    """Statistics of inputs [samples, tokens, in]; only tokens with mask 1 count, all of them without a mask.

    Who asks for many layers that see the same tokens may give ``Counted(x, mask)`` of one of them.

    Both are taken from mean and variance v, n² = tokens · (mean² + v) and σ² = v · tokens / (tokens − 1), in float64,
    and rounded: equal inputs have equal statistics.
    """
    x = x.detach()
    if x.is_cuda and (norm_and_std := _kernel()) is not None:
        return TokenStatistics(*norm_and_std(x, mask))
    counted = counted or Counted(x, mask)
    of_samples = _one_by_one if x.device.type == "cpu" else _together
    mean, variance = of_samples(x, counted)
    norm = mean.square_().add_(variance).mul_(counted.number).sqrt_()
    std = variance.mul_(counted.unbiased).sqrt_()
    return TokenStatistics(norm.float(), std.float(), counted.tokens)


@cache
def _kernel() -> Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]] | None:
    """`token_kernel.norm_and_std` where it works on this machine; without it scoring takes half as long again."""
    return tried(lambda: import_module(f"{__package__}.token_kernel").norm_and_std, agrees, "cuda")


def agrees(found: Callable[..., tuple[torch.Tensor, ...]], device: str) -> bool:
    """Whether it finds in a few inputs on a device what the plain form finds in them."""
    x = torch.arange(3 * 70 * 100, dtype=torch.float32).view(3, 70, 100).sin().add(1.5)
    x[:, :, 3], x[:, 0, 4], x[0, 0, 5] = 0.7, 300, torch.nan
    gaps = (torch.arange(210).view(3, 70) % 3 > 0) & torch.tensor([[True], [True], [False]])
    for dtype, mask in ((torch.float32, None), (torch.bfloat16, gaps.long())):
        counts = None if mask is None else mask.to(device)
        norm, std, tokens = (part.cpu() for part in found(x.to(device, dtype), counts))
        same = token_statistics(x.to(dtype), mask)
        if tokens.tolist() != same.tokens.tolist() or not torch.allclose(norm, same.norm.float(), 1e-5, 0, True):
            return False
        if not torch.allclose(std, same.std.float(), rtol=1e-4, atol=1e-5, equal_nan=True):
            return False
    return True


def _together(x: torch.Tensor, counted: Counted) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance over the tokens, float64 [samples, in], by few operations on all samples."""
    x, mask = x.float(), counted.mask
    if mask is None:
        mean = x.mean(1)
        return to_double(mean), to_double((x - mean[:, None]).square().mean(1))
    counts, number = mask[:, :, None] > 0, mask.sum(1)[:, None].clamp_min(1)
    mean = torch.where(counts, x, 0).sum(1) / number
    return to_double(mean), to_double(torch.where(counts, x - mean[:, None], 0).square().sum(1) / number)


def _one_by_one(x: torch.Tensor, counted: Counted) -> tuple[torch.Tensor, torch.Tensor]:
    """The same sample by sample, which stays in the processor's cache and copies nothing."""
    if len(x) == 0:
        return torch.zeros(0, x.shape[2]).double(), torch.zeros(0, x.shape[2]).double()
    found = [_of_tokens(tokens[rows]) for tokens, rows in zip(x, counted.rows, strict=True)]
    mean, variance = (torch.stack(parts).double() for parts in zip(*found, strict=True))
    return mean, variance


def _of_tokens(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of tokens [tokens, in], [in] each; of up to `SLAB` of them float32, of none 0."""
    if len(x) == 0:
        return torch.zeros(x.shape[1]), torch.zeros(x.shape[1])
    if len(x) <= SLAB:
        return _mean_and_variance(x)
    slabs = x.tensor_split(-(-len(x) // SLAB))
    shares = torch.tensor([[len(slab) / len(x)] for slab in slabs], dtype=torch.float64)
    found = zip(*(_mean_and_variance(slab) for slab in slabs), strict=True)
    mean, variance = (torch.stack(parts).double() for parts in found)  # [slabs, in]
    whole = (shares * mean).sum(0)
    return whole, (shares * (variance + (mean - whole).square_())).sum(0)


def _mean_and_variance(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of tokens [tokens, in], divided by their number, float32 [in].

    Batch normalisation has them in one operation that also reads bfloat16, at a fifth of the cost of `torch.var_mean`.
    """
    if x.dtype != torch.bfloat16:
        return torch.batch_norm_update_stats(x.float().contiguous(), None, None, 0.0)
    running = torch.zeros(2, x.shape[1])  # without these the result would be bfloat16
    return torch.batch_norm_update_stats(x.contiguous(), running[0], running[1], 0.0)


class Scorer(Protocol):
    """What `ChannelNorms` feeds: statistics of the same pairs, safe and unsafe, batch by batch."""

    def update(self, safe: TokenStatistics, unsafe: TokenStatistics) -> None:
        """Take in one batch; not to be kept without a copy."""


class ChannelNorms(Shared):
    """Reducer of UWM: token statistics of every weight's input, given to that weight's scorer (UWM, section 4).

    Args:
        scorers: One a weight; it is fed as soon as the unsafe side of a batch has reached the layer.
    """

    needs_embeddings = False
    towers_apart = True
    SUMS = ("scorers",)

    def __init__(self, scorers: Mapping[WeightId, Scorer]) -> None:
        self.scorers = scorers
        self._safe: dict[WeightId, TokenStatistics] = {}  # float32, until the unsafe side runs
        self._block, self._used = torch.empty(0), 0  # memory of these, and how much of it they take
        self._counted: Counted | None = None  # of the layers of a side

    def layers(self, tower: str) -> Sequence[WeightId]:
        """The scored weights of a tower."""
        return [weight for weight in self.scorers if weight.tower == tower]

    def take(self, weight: WeightId, side: int, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Keep the token statistics of the safe side, or feed the scorer; gives the norms for the check of the pass."""
        known = self._counted
        if not x.is_cuda and (known is None or known.mask is not mask or known.samples_and_tokens != x.shape[:2]):
            known = self._counted = Counted(x, mask)
        found = token_statistics(x, mask, known)
        if side == SAFE:
            self._safe[weight] = self._in_block(weight, found)
        else:
            self.give((weight, self._safe.pop(weight), found))
        return found.norm

    def _in_block(self, weight: WeightId, found: TokenStatistics) -> TokenStatistics:
        """The same values in one block of all layers, with one count of tokens; on the CPU, if joined at once.

        One by one, however small, they would lie where activations were freed, and no others would fit there again.
        """
        if self._given is not None or found.norm.device.type != "cpu":
            return found
        if not self._safe or weight in self._safe:  # a side begins, perhaps anew
            self._used = 0
        size = 2 * found.norm.numel()
        if self._used + size > len(self._block):
            self._block, self._used = torch.empty(size * len(self.layers(weight.tower))), 0
        norm, std = self._block[self._used : self._used + size].view(2, *found.norm.shape)
        self._used += size
        tokens = next((one.tokens for one in self._safe.values() if one.tokens.equal(found.tokens)), found.tokens)
        return TokenStatistics(norm.copy_(found.norm), std.copy_(found.std), tokens)

    def join(self, item: tuple[WeightId, TokenStatistics, TokenStatistics]) -> None:
        """Feed a weight's scorer with both sides of some pairs."""
        weight, safe, unsafe = item
        self.scorers[weight].update(safe, unsafe)

    def update(self, part: Part) -> None:
        """Raises BadInput when the batch had no unsafe side."""
        self._counted = None
        if any(weight.tower == part.tower for weight in self._safe):
            self._safe.clear()
            raise BadInput(f"a batch of the {part.tower} tower has no unsafe side; UWM compares safe with unsafe")
