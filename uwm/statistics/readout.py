"""How the embedding depends on the output of the last MLP at the pooled token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch

from ..errors import BadInput
from ..models import Model
from ..weights import WeightId
from .batches import embed_inputs
from .hooks import cut_outputs
from .keys import digests
from .passes import Part, Shared

SAMPLES = 32  # of the safe side, whose Jacobians are averaged
Item = TypeVar("Item")
Drawn = dict[bytes, tuple[torch.Tensor, torch.Tensor | None]]  # digest -> an input and its mask


class Readout(Shared):
    """Reducer: the mean Jacobian of the embedding by the last MLP's output, and the mean norm of safe embeddings.

    Through a LayerNorm with gain γ and a projection P that is the mean of P diag(γ) (I − 11ᵀ/d − ĥĥᵀ/d) / std(h) over
    samples; without them the identity. It is found by differentiation, so it holds for every family. Of the safe inputs
    those with the least digests are its samples, so that neither batches nor order decide.

    Args:
        model: In eval mode, and unedited when the Jacobian is asked for.
        outputs: Tower -> the last MLP's second matrix.
    """

    SUMS = ("_drawn", "_norms")

    def __init__(self, model: Model, outputs: Mapping[str, WeightId]) -> None:
        self._model = model
        self._outputs = outputs
        self._drawn: dict[str, Drawn] = {}
        self._jacobians: dict[str, torch.Tensor] = {}
        self._norms: dict[str, list[torch.Tensor]] = {}

    def jacobian(self, tower: str) -> torch.Tensor:
        """Mean of ∂embedding/∂output at the pooled token, float64 [dim, width], on the CPU.

        Raises:
            BadInput: The embedding reads several tokens of the output.
        """
        if tower not in self._jacobians:
            drawn, output = self._drawn[tower], self._outputs[tower]
            parts = [_jacobian(self._model, tower, output, *batch) for batch in _batches(drawn)]
            self._jacobians[tower] = torch.stack(parts).sum(0) / len(drawn)
        return self._jacobians[tower]

    def norm(self, tower: str) -> float:
        """Mean norm of the safe side's embeddings."""
        return float(torch.cat(self._norms[tower]).mean())

    def layers(self, tower: str) -> Sequence[WeightId]:
        """None: it looks at no layer during the pass."""
        return ()

    def take(self, weight: WeightId, side: int, x: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Never called."""

    def update(self, part: Part) -> None:
        """Take in the safe side of one batch."""
        drawn: Drawn = {}
        if part.tower in self._outputs:
            inputs, mask = part.inputs[0]
            rows = {key: row for row, key in enumerate(digests(inputs, mask))}
            for key, row in _least(rows).items():
                drawn[key] = inputs[row].cpu().clone(), None if mask is None else mask[row].cpu().clone()
        self.give((part.tower, part.embeddings[0].double().norm(dim=1).cpu(), drawn))

    def join(self, item: tuple[str, torch.Tensor, Drawn]) -> None:
        """Take in the norms of one batch, [pairs], and the inputs of it that may be samples."""
        tower, norms, drawn = item
        self._norms.setdefault(tower, []).append(norms)
        if tower in self._outputs:
            self._drawn[tower] = _least({**self._drawn.get(tower, {}), **drawn})


def _least(items: dict[bytes, Item]) -> dict[bytes, Item]:
    """Those with the least digests, in their order."""
    return {key: items[key] for key in sorted(items)[:SAMPLES]}


def _batches(drawn: Drawn) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """The drawn inputs and masks, those of equal shape together: captions were padded batch by batch."""
    shapes: dict[torch.Size, list[bytes]] = {}
    for key, (row, _) in drawn.items():
        shapes.setdefault(row.shape, []).append(key)
    batches: list[tuple[torch.Tensor, torch.Tensor | None]] = []
    for keys in shapes.values():
        masks = [mask for key in keys if (mask := drawn[key][1]) is not None]
        batches.append((torch.stack([drawn[key][0] for key in keys]), torch.stack(masks) if masks else None))
    return batches


def _jacobian(
    model: Model, tower: str, weight: WeightId, inputs: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """The sum over samples of ∂embedding/∂output, float64 [dim, width]."""
    with cut_outputs(model.owner(weight)) as outputs, torch.enable_grad():
        embeddings = embed_inputs(model, inputs, mask)  # [samples, dim]
    rows = []
    read: torch.Tensor | bool = False  # which tokens of which samples have a gradient, [samples, tokens]
    for k in range(embeddings.shape[1]):
        (slope,) = torch.autograd.grad(embeddings[:, k].sum(), outputs[-1], retain_graph=True)
        slope = slope.reshape(len(inputs), -1, slope.shape[-1])  # [samples, tokens, width]
        read = read | (slope != 0).any(2)
        rows.append(slope.double().sum((0, 1)).cpu())
    if (torch.as_tensor(read).sum(1) > 1).any():
        raise BadInput(f"{weight}: the embedding of the {tower} tower reads several tokens of it, not one")
    return torch.stack(rows)
