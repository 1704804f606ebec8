"""Whether the embedding of a caption is read where its mask ends, found by differentiation for every family."""

from __future__ import annotations

import torch

from ..errors import BadInput
from ..models import Model
from ..models.base import EndToken
from ..weights import WeightId, block_count
from .hooks import cut_outputs


@torch.no_grad()
def check_pooled_token(model: Model, input_ids: torch.Tensor, mask: torch.Tensor, tower: str) -> None:
    """Refuse captions whose embedding is read at another token than the last one that their mask counts.

    All captions of a tower's first batch are run once more. Of later batches only those are that may differ: their end
    token is another one, stands in them twice, or has not the highest id where that may be what the library goes by.

    Args:
        model: In train mode, which draws random numbers, nothing is checked.
        input_ids, mask: As `Model.encode_text` takes them, [n, length], both on the CPU or on the model's device.
        tower: ``text``, ``text_2`` …

    Raises:
        BadInput: They contradict each other; the message names both tokens and what the library goes by.
    """
    if model.module.training:
        return
    if tower in model.end_tokens:
        odd = _may_differ(model, tower, input_ids, mask)
        input_ids, mask = input_ids[odd], mask[odd]
    if not len(input_ids):
        return
    input_ids, mask = input_ids.to(model.device), mask.to(model.device)
    read = _tokens_read(model, tower, input_ids, mask)  # [n, tokens]
    if not read.any():
        return  # a layer that is never called, or an embedding that depends on nothing, is for others to find
    said = model.pooled(tower, mask, read.shape[1])
    if said is not None:
        ends = torch.zeros_like(read).scatter(1, said[:, None].to(read.device), True)
        wrong = (read != ends).any(1) & read.any(1)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise BadInput(_contradiction(model, tower, input_ids[row], read[row], int(said[row])))
    if said is None or model.pools(tower) != "end":
        model.end_tokens[tower] = None
        return
    known = model.end_tokens.get(tower) or EndToken(int(input_ids[0, said[0]]), False)
    higher = bool(((input_ids > known.token) & (mask > 0)).any())
    model.end_tokens[tower] = EndToken(known.token, known.below_others or higher)


def _may_differ(model: Model, tower: str, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Which captions could be read elsewhere than those of the first batch, bool [n]."""
    known, counted = model.end_tokens[tower], mask > 0
    said = model.pooled(tower, mask, input_ids.shape[1])
    if known is None or said is None:
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    last = input_ids.gather(1, said[:, None]).squeeze(1)
    odd = (last != known.token) | (((input_ids == known.token) & counted).sum(1) != 1)
    return odd if known.below_others else odd | ((input_ids > known.token) & counted).any(1)


def _tokens_read(model: Model, tower: str, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """At which tokens the last block's output changes the embedding, bool [n, tokens]."""
    last = WeightId(tower, block_count(model.weights, tower) - 1, "fc2")
    with torch.enable_grad(), cut_outputs(model.owner(last)) as outputs:
        embeddings = model.encode_text(input_ids, mask, tower).float()
        uneven = torch.arange(1.0, embeddings.shape[1] + 1, device=embeddings.device)  # the plain sum may be constant
        if not outputs:
            return torch.zeros(len(input_ids), 1, dtype=torch.bool)
        (slope,) = torch.autograd.grad((embeddings @ uneven).sum(), outputs[0])
    return (slope.reshape(len(input_ids), -1, slope.shape[-1]) != 0).any(2)


def _contradiction(model: Model, tower: str, ids: torch.Tensor, read: torch.Tensor, end: int) -> str:
    """What a user can do about a caption that ends at one token and is read at others."""
    places = [int(place) for place in read.nonzero()]
    where = "the model" if model.checkpoint is None else str(model.folder or model.checkpoint.path)
    at = f"token {int(ids[places[0]])} (position {places[0]})" if len(places) == 1 else f"{len(places)} tokens"
    setting = model.pooling_setting(tower)
    return (
        f"{where}: the {tower} tower reads the embedding of a caption at {at}, but the caption ends with token "
        f"{int(ids[end])} (position {end}){f': {setting}' if setting else ''}; correct it, or use the tokenizer that "
        "the model was trained with"
    )
