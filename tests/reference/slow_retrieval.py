"""Retrieval by the plain form that `uwm.ranks` replaced: each direction alone, all bars and near rows in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from uwm.figures import KS
from uwm.metrics import DIRECTIONS, _partners, first_rows
from uwm.ranks import TIE, Standing

TILE = (4096, 1024)


def retrieval(items, embeddings, asking=None, ks=KS):
    """As `Retrieval(items, asking, ks).samples(embeddings)`."""
    standings, top1 = {}, {}
    for name, (query, group, partner, unsafe) in DIRECTIONS.items():
        own, groups = getattr(items, query), getattr(items, group)
        asked = torch.arange(len(own)) if asking is None else asking
        rows, row_of = first_rows(torch.stack([own, groups], 1)[asked])
        rows = asked[rows]
        candidates, candidate_of = first_rows(getattr(items, partner))
        partners = _partners(groups[rows], groups, candidate_of)
        others = None if unsafe is None else embeddings[unsafe][first_rows(getattr(items, unsafe))[0]]
        found, first = _standing(embeddings[query][rows], embeddings[partner][candidates], partners, others)
        standings[name] = Standing(*(numbers[row_of] for numbers in vars(found).values()))
        if unsafe is not None:
            top1[f"unsafe_top1_{name.removesuffix('_union')}"] = first.double()[row_of]
    return {f"R{k}_{name}": standing.hits(k) for k in ks for name, standing in standings.items()} | top1


def _standing(queries, safe, partners, unsafe):
    query, candidate = partners
    cosines = _own(queries[query], safe, candidate)
    bar = cosines.new_full((len(queries),), -torch.inf).scatter_reduce_(0, query, cosines, "amax")
    better, tied, best = _compare(queries, safe, bar, partners)
    level = torch.bincount(query[cosines >= bar[query] - TIE], minlength=len(queries))
    if unsafe is None:
        return Standing(better, tied, level), torch.zeros_like(bar, dtype=torch.bool)
    others, level_with, first = _compare(queries, unsafe, bar)
    unsafe_first = ~(first < torch.maximum(best, bar) - TIE)
    return Standing(better + others, tied + level_with, level), unsafe_first


def _compare(queries, candidates, bar, partners=None):
    better = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    tied, best = torch.zeros_like(better), torch.zeros_like(better)
    highest = torch.full((len(queries),), -torch.inf, device=queries.device)
    for first in range(0, len(candidates), TILE[1]):
        block = F.normalize(candidates[first : first + TILE[1]].float(), dim=-1)
        exact = F.normalize(candidates[first : first + TILE[1]].double(), dim=-1)
        for start in range(0, len(queries), TILE[0]):
            rows = slice(start, start + TILE[0])
            similarity = F.normalize(queries[rows].float(), dim=-1) @ block.T  # [tile, tile]
            own = _within(partners, start, first, similarity.shape)
            similarity[own] = -torch.inf
            top = similarity.amax(1)
            higher = (top > highest[rows]).nonzero().flatten()
            highest[start + higher] = top[higher]
            best[start + higher] = first + similarity[higher].argmax(1)
            above, near = _against(similarity, bar[rows], queries.shape[1])
            gap = F.normalize(queries[start + near].double(), dim=-1) @ exact.T - bar[start + near][:, None]
            gap[similarity[near] == torch.inf] = -torch.inf
            above[near] = (gap > TIE).sum(1)
            better[rows] += above
            tied[start + near] += (gap.abs() <= TIE).sum(1)
    better[bar.isnan()] = len(candidates)
    return better, tied, _own(queries, candidates, best)


def _against(similarity, bar, dim):
    margin = (dim**0.5 + 4) * 2**-23  # twice the usual bound of rounding, √dim · 2⁻²⁴; seen: a twentieth of it
    similarity -= bar[:, None].float()
    above = torch.gt(similarity, TIE, out=torch.empty_like(similarity)).sum(1).long()
    return above, (similarity.abs_().amin(1) <= TIE + margin).nonzero().flatten()


def _within(partners, row, column, shape):
    if partners is None:
        return (torch.empty(0, dtype=torch.long),) * 2
    rows, columns = partners[0] - row, partners[1] - column
    inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
    return rows[inside], columns[inside]


def _own(queries, candidates, targets):
    own = F.normalize(queries.double(), dim=-1) * F.normalize(candidates[targets].double(), dim=-1)
    return own.sum(-1)
