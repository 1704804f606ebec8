"""How the embedding depends on the output of the last MLP at the pooled token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ..errors import BadInput
from ..models import Model
from ..weights import WeightId
from .batches import embed_inputs
from .passes import Part

SAMPLES = 32  # of the safe side, whose Jacobians are averaged


class Readout:
    """Reducer: the mean Jacobian of the embedding by the last MLP's output, and the mean norm of safe embeddings.

    Through a LayerNorm with gain γ and a projection P that is the mean of P diag(γ) (I − 11ᵀ/d − ĥĥᵀ/d) / std(h) over
    samples; without them the identity. It is found by differentiation, so it holds for every family.

    Args:
        model: In eval mode.
        outputs: Tower -> the last MLP's second matrix.
    """

    def __init__(self, model: Model, outputs: Mapping[str, WeightId]) -> None:
        self._model = model
        self._outputs = outputs
        self._jacobians: dict[str, list[torch.Tensor]] = {}  # by tower, [samples of a batch, dim, width] summed
        self._seen: dict[str, int] = {}
        self._norms: dict[str, list[torch.Tensor]] = {}

    def jacobian(self, tower: str) -> torch.Tensor:
        """Mean of ∂embedding/∂output at the pooled token, float64 [dim, width], on the CPU."""
        return torch.stack(self._jacobians[tower]).sum(0) / self._seen[tower]

    def norm(self, tower: str) -> float:
        """Mean norm of the safe side's embeddings."""
        return float(torch.cat(self._norms[tower]).mean())

    def layers(self, tower: str) -> Sequence[WeightId]:
        """None: it looks at no layer during the pass."""
        return ()

    def take(self, weight: WeightId, side: int, x: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Never called."""

    def update(self, part: Part) -> None:
        """Take in the safe side of one batch. Raises BadInput where the embedding reads several tokens."""
        self._norms.setdefault(part.tower, []).append(part.embeddings[0].double().norm(dim=1).cpu())
        wanted = SAMPLES - self._seen.get(part.tower, 0)
        if part.tower not in self._outputs or wanted <= 0:
            return
        inputs, mask = part.inputs[0]
        inputs, mask = inputs[:wanted], None if mask is None else mask[:wanted]
        found = _jacobian(self._model, part.tower, self._outputs[part.tower], inputs, mask)
        self._jacobians.setdefault(part.tower, []).append(found)
        self._seen[part.tower] = self._seen.get(part.tower, 0) + len(inputs)


def _jacobian(
    model: Model, tower: str, weight: WeightId, inputs: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """The sum over samples of ∂embedding/∂output, float64 [dim, width]."""
    outputs: list[torch.Tensor] = []

    def cut(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        outputs.append(output.detach().requires_grad_(True))
        return outputs[-1]

    handle = None
    try:
        handle = model.owner(weight).register_forward_hook(cut)
        with torch.enable_grad():
            embeddings = embed_inputs(model, inputs, mask)  # [samples, dim]
            rows = [
                torch.autograd.grad(embeddings[:, k].sum(), outputs[0], retain_graph=True)[0]
                for k in range(embeddings.shape[1])
            ]  # dim times [samples, tokens, width], or [samples, width]
    finally:
        if handle is not None:
            handle.remove()
    whole = torch.stack(rows, 1).double().cpu()  # [samples, dim, (tokens,) width]
    if whole.ndim == 3:
        return whole.sum(0)
    if ((whole != 0).any(3).any(1).sum(1) > 1).any():  # tokens with a gradient, by sample
        raise BadInput(f"{weight}: the embedding of the {tower} tower reads several tokens of it, not one")
    return whole.sum(2).sum(0)
