"""Which towers and blocks a closed form works on, as its settings name them. Importing this needs no torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ...errors import BadInput
from ...weights import GATE, WeightId
from ..editors import Pairs

if TYPE_CHECKING:
    import torch

    from ...models import Model
    from ...statistics.moments import Rows

POOLED, ALL, PADDED, PATCHES = TOKENS = ("pooled", "all", "padded", "patches")
TOKENS_HELP = (
    "Tokens that are looked at: the pooled one, all, all of captions with their padding, or all patches of images."
)
OF_TOWER = {PATCHES: "vision", PADDED: "text"}  # tokens that only one kind of tower has
TOWERS = ("both", "text", "vision")
TOWERS_HELP = "Towers that are edited."
DEPTH_HELP = "Block whose residual stream is looked at, as a share of the depth  [default: 1, the last]"
WEIGHT_HELP = "Share of the direction that is removed; 2 reflects it  [default: 1]"
RANK_HELP = "Rank of the change  [default: the method's]"


def towers_of(method: str, model: Model, pairs: Pairs, named: str) -> tuple[str, ...]:
    """The towers to edit; with ``both`` those that the model and the set have.

    Raises:
        BadInput: A tower that is asked for by name is missing, or none is left.
    """
    wanted = ("text", "vision") if named == "both" else (named,)
    found = [t.name for t in model.layout.towers if t.encoder.modality in wanted]
    there = tuple(name for name in found if name.partition("_")[0] in pairs.modalities)
    if not there:
        lack = f"the set has no side for the towers to edit ({' and '.join(wanted)})" if found else model.lacks(named)
        raise BadInput(f"--method {method}: {lack}")
    return there


def check_tokens(tokens: str, towers: str) -> None:
    """Refuse tokens that a tower does not have. Raises BadInput."""
    if (only := OF_TOWER.get(tokens, towers)) != towers:
        raise BadInput(f"--tokens {tokens}: only the {only} tower has them; add --towers {only}")


def picked_rows(model: Model, tokens: str, otherwise: Rows | None = None) -> Rows | None:
    """Picks the rows of a layer's input that `TOKENS` names; None for all that count.

    Args:
        otherwise: Picks what is pooled where the embedding is read from several tokens; None refuses such a tower.
    """
    from ...statistics.pooled import PooledToken

    if tokens == POOLED:
        return PooledToken(model, otherwise)
    return _patches_of(model) if tokens == PATCHES else None


def _patches_of(model: Model) -> Rows:
    """Picks the patches of a layer's input, without the class token, [rows, in]; sample by sample."""

    def patches(weight: WeightId, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        first = model.before_patches(weight.tower)
        return x[:, first:].flatten(0, 1) if mask is None else x[:, first:][mask[:, first:].bool()]

    return patches


def block_at(model: Model, tower: str, depth: float) -> int:
    """The block that ends at a share of the depth: 1 for the last that is read, near 0 for the first."""
    return max(0, math.ceil(depth * model.depth(tower) - 1e-9) - 1)


def check_share(name: str, value: float, low: float = 0.0) -> None:
    """Refuse a share outside (low, 1]. Raises BadInput."""
    if not low < value <= 1:
        raise BadInput(f"--{name} {value}: expected a number over {low:g}, at most 1")


def is_gated(model: Model, mlp: tuple[WeightId, WeightId]) -> bool:
    """Whether the hidden units of an MLP are products, of two matrices or of the two halves of one."""
    first, second = mlp
    apart = WeightId(first.tower, first.block, GATE) in model.tensors
    return apart or len(model.parameter(first)) != model.parameter(second).shape[1]


def bias_of(model: Model, name: WeightId) -> WeightId | None:
    """The bias beside a matrix; None where there is none."""
    bias = WeightId(name.tower, name.block, f"{name.slot}.bias")
    return bias if bias in model.tensors else None
