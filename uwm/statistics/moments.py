"""Count, mean and second moments of rows, streamed in float64, and the reducer that takes them of layers' inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..weights import WeightId
from .passes import Part, Shared

Rows = Callable[[WeightId, torch.Tensor, torch.Tensor | None], torch.Tensor]
# Of a layer's input [samples, tokens, in] and its mask [samples, tokens]: the rows that count, [rows, in].


def counted_tokens(weight: WeightId, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """All tokens that the mask counts, [rows, in]; sample by sample."""
    return x.flatten(0, 1) if mask is None else x[mask.bool()]


@dataclass(frozen=True)
class Total:
    """Of some rows [n, d]: how many, and their sum, float64 [d]."""

    count: int
    sum: torch.Tensor

    @classmethod
    def of(cls, x: torch.Tensor) -> Total:
        """Of rows [n, d]."""
        return cls(len(x), to_double(x).sum(0))


@dataclass(frozen=True)
class Spread:
    """Of some rows x [n, d] and their targets z [n, k]: how many, and as `Moments` has it, mean and scatter."""

    count: int
    mean: torch.Tensor
    scatter: torch.Tensor

    @classmethod
    def of(cls, x: torch.Tensor, z: torch.Tensor | None = None) -> Spread | None:
        """Of rows x [n, d], each with its target z [n, k]; None of no rows."""
        if len(x) == 0:
            return None
        rows = to_double(x)
        both = rows if z is None else torch.cat([rows, to_double(z)], 1)  # [n, d + k]
        mean, width = both.mean(0), rows.shape[1]
        centred = both - mean
        return cls(len(rows), mean, centred[:, :width].T @ centred)


class Mean:
    """The mean of rows [n, d], summed in float64."""

    SUMS = ("count", "_sum")

    def __init__(self) -> None:
        self.count = 0
        self._sum: torch.Tensor | None = None

    def add(self, x: torch.Tensor) -> None:
        """Add rows [n, d]."""
        self.join(Total.of(x))

    def join(self, rows: Total) -> None:
        """Add rows by what they come to."""
        self.count += rows.count
        self._sum = rows.sum if self._sum is None else self._sum + rows.sum

    @property
    def mean(self) -> torch.Tensor:
        """The mean so far, float64 [d], on the CPU."""
        assert self._sum is not None, "no rows were added"
        return (self._sum / self.count).cpu()


class Moments:
    """Count, mean and second moments of rows x [n, d], and the cross moments with targets z [n, k] where there are any.

    Everything is float64. The sums are kept around the running mean and joined as Chan, Golub and LeVeque (1983) do, so
    a mean that is large against the spread costs no precision, and batches of any size give the same up to rounding.
    """

    SUMS = ("count", "_mean", "_scatter")

    def __init__(self) -> None:
        self.count = 0
        self._mean: torch.Tensor | None = None  # [d + k] of x and z side by side
        self._scatter: torch.Tensor | None = None  # Σ (x − mean)(y − mean)ᵀ [d, d + k], y = x and z side by side

    def add(self, x: torch.Tensor, z: torch.Tensor | None = None) -> None:
        """Add rows x [n, d], each with its target z [n, k]; all calls have targets or none has."""
        self.join(Spread.of(x, z))

    def join(self, rows: Spread | None) -> None:
        """Add rows by what they come to; None for none."""
        if rows is None:
            return
        if self._mean is None or self._scatter is None:
            self.count, self._mean, self._scatter = rows.count, rows.mean.clone(), rows.scatter.clone()
            return
        total = self.count + rows.count
        step = rows.mean - self._mean
        outer = torch.outer(step[: len(rows.scatter)], step)
        self._scatter += rows.scatter + outer * (self.count * rows.count / total)
        self._mean += step * (rows.count / total)
        self.count = total

    @property
    def mean(self) -> torch.Tensor:
        """Of x, float64 [d], on the CPU."""
        return self._parts()[0][: self._width]

    @property
    def target_mean(self) -> torch.Tensor:
        """Of z, float64 [k], on the CPU."""
        return self._parts()[0][self._width :]

    @property
    def sum(self) -> torch.Tensor:
        """Of x, float64 [d], on the CPU."""
        return self.mean * self.count

    @property
    def second(self) -> torch.Tensor:
        """XᵀX, the sum of x xᵀ, float64 [d, d], on the CPU; divided by `count` it is the second moment."""
        return self._uncentred()[:, : self._width]

    @property
    def cross(self) -> torch.Tensor:
        """XᵀZ, the sum of x zᵀ, float64 [d, k], on the CPU."""
        return self._uncentred()[:, self._width :]

    def centred(self) -> torch.Tensor:
        """The covariance of x, divided by the count, float64 [d, d], on the CPU."""
        return self._parts()[1][:, : self._width] / self.count

    def centred_cross(self) -> torch.Tensor:
        """The covariance of x with z, divided by the count, float64 [d, k], on the CPU."""
        return self._parts()[1][:, self._width :] / self.count

    @property
    def _width(self) -> int:
        return len(self._parts()[1])

    def _parts(self) -> tuple[torch.Tensor, torch.Tensor]:
        assert self._mean is not None, "no rows were added"
        assert self._scatter is not None
        return self._mean.cpu(), self._scatter.cpu()

    def _uncentred(self) -> torch.Tensor:
        mean, scatter = self._parts()
        return scatter + self.count * torch.outer(mean[: len(scatter)], mean)


class InputMoments(Shared):
    """Reducer: moments of the inputs of some layers, each side for itself.

    Args:
        weights: The layers.
        rows: Which rows of an input count: `counted_tokens`, or `uwm.statistics.pooled.PooledToken` of a model.

    Attributes:
        moments: (layer, side) -> `Moments`; a side that was never seen has count 0.
    """

    needs_embeddings = False
    SUMS = ("moments",)

    def __init__(self, weights: Sequence[WeightId], rows: Rows = counted_tokens) -> None:
        self._weights = weights
        self._rows = rows
        self.moments = {(weight, side): Moments() for weight in weights for side in (0, 1)}

    def layers(self, tower: str) -> Sequence[WeightId]:
        """Those of a tower."""
        return [weight for weight in self._weights if weight.tower == tower]

    def take(self, weight: WeightId, side: int, x: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Add the rows that count."""
        self.give((weight, side, Spread.of(self._rows(weight, x, mask))))

    def update(self, part: Part) -> None:
        """Nothing is left to do."""

    def join(self, item: tuple[WeightId, int, Spread | None]) -> None:
        """Add rows of one side of a layer."""
        weight, side, rows = item
        self.moments[weight, side].join(rows)


def to_double(x: torch.Tensor) -> torch.Tensor:
    """The same in float64 without gradient, on its device, or on the CPU where the device (MPS) has no float64."""
    return (x.cpu() if x.device.type == "mps" else x).detach().double()
