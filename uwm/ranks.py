"""Where the best partner of each query stands among all candidates: float32 products, decided in float64 when near."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
import torch.nn.functional as F

TILE = (1024, 1024)  # queries and candidates compared at a time: a tile and its comparison fit a cache of 8 MB
PIECE = 1 << 8  # rows compared one by one at a time
TIE = 1e-6  # cosines that differ by no more are equal; batch size and threads move a float32 cosine by up to 3e-7

Pairs = tuple[torch.Tensor, torch.Tensor]  # queries and candidates that belong together, int64 [pairs] each


@dataclass(frozen=True)
class Standing:
    """Where the best partner of each query stands among all candidates, int64 [n] each.

    Attributes:
        better: Candidates that are more similar to the query, by more than `TIE`.
        tied: Other candidates within `TIE` of it.
        partners: Partners within `TIE` of it, itself among them.
    """

    better: torch.Tensor
    tied: torch.Tensor
    partners: torch.Tensor

    @classmethod
    def of(cls, *tallies: Tally) -> Standing:
        """From the tallies of some queries among all candidates."""
        above, tied = zip(*(tally.counts() for tally in tallies), strict=True)
        return cls(torch.stack(above).sum(0), torch.stack(tied).sum(0), tallies[0].bars.level)

    def __getitem__(self, rows: torch.Tensor) -> Standing:
        """Of some queries."""
        return Standing(self.better[rows], self.tied[rows], self.partners[rows])

    def hits(self, k: int) -> torch.Tensor:
        """The probability that a partner is among the k best when ties are broken by chance, float64 [n].

        After McSherry and Najork, "Computing Information Retrieval Performance Measures Efficiently in the Presence of
        Tied Scores" (ECIR 2008): all orders of tied candidates are equally likely, so a query misses with the
        probability that the places which are left all go to the tied candidates that are no partners.
        """
        missed = torch.ones(len(self.better), dtype=torch.float64, device=self.better.device)
        for place in range(k):
            left = self.tied + self.partners - place
            odds = (self.tied - place).clamp_min(0).double() / left.clamp_min(1)
            missed *= torch.where(self.better + place < k, odds, 1)
        return 1 - missed


@dataclass(frozen=True)
class Part:
    """Some rows of a matrix of embeddings.

    Attributes:
        matrix: [n, dim], not normalised.
        rows: int64 [part]; None: all, which then are not copied.
    """

    matrix: torch.Tensor
    rows: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.matrix if self.rows is None else self.rows)

    def chosen(self, which: torch.Tensor | slice) -> torch.Tensor:
        """Some rows of the part, [which, dim]."""
        return self.matrix[which if self.rows is None else self.rows[which]]

    @cached_property
    def unit(self) -> torch.Tensor:
        """Normalised rows, float32 [part, dim]; no copy of a whole matrix that is normalised already."""
        rows = self.chosen(slice(None)).float()
        lengths = torch.linalg.vector_norm(rows, dim=1)
        return rows if ((lengths - 1).abs() <= 2**-22).all() else rows / lengths.clamp_min(1e-12)[:, None]

    def exact(self, which: torch.Tensor) -> torch.Tensor:
        """Normalised rows of the part, float64 [which, dim]."""
        return F.normalize(self.chosen(which).double(), dim=1)


def cosines(queries: Part, candidates: Part, pairs: Pairs) -> torch.Tensor:
    """The cosine of each pair, float64 [pairs]."""
    pieces = zip(*(places.split(PIECE) for places in pairs), strict=True)
    return torch.cat([(queries.exact(left) * candidates.exact(right)).sum(1) for left, right in pieces])


class Bars:
    """The cosine of each query with its best partner; a query or partner with NaN makes it NaN.

    Args:
        queries, candidates: What is compared.
        partners: Queries and their partners; each query has one.

    Attributes:
        about: float64 [queries]; of queries with one partner as float32 products give it.
        level: How many partners are within `TIE` of the best one, int64 [queries].
    """

    def __init__(self, queries: Part, candidates: Part, partners: Pairs) -> None:
        self.queries, self._candidates = queries, candidates
        asking, found = partners
        self.level = torch.bincount(asking, minlength=len(queries))
        pieces = zip(asking.split(PIECE), found.split(PIECE), strict=True)
        own = torch.cat([(queries.unit[left] * candidates.unit[right]).sum(1) for left, right in pieces]).double()
        self.about, self._best = own.new_empty(len(queries)), torch.zeros_like(self.level)
        several = self.level[asking] > 1
        if several.any():
            own[several] = cosines(queries, candidates, (asking[several], found[several]))
            self.about.fill_(-torch.inf).scatter_reduce_(0, asking, own, "amax")
            self.level = torch.bincount(asking[own >= self.about[asking] - TIE], minlength=len(queries))
            best = own >= self.about[asking]
            asking, found, own = asking[best], found[best], own[best]
        self.about[asking], self._best[asking] = own, found

    def exact(self, which: torch.Tensor) -> torch.Tensor:
        """Of some queries, float64 [which]."""
        return cosines(self.queries, self._candidates, (which, self._best[which]))


class Tally:
    """How many candidates are above the bar of each query, how many tie with it, and how high the best one is.

    A candidate whose float32 cosine is near the bar is decided in float64, so that neither tiles nor the places of
    equal items decide.

    Args:
        bars: Of the queries.
        candidates: What they are compared with. Where a bar is NaN, none is above it.

    Attributes:
        above, tied: int64 [queries].
        highest: float32 [queries].
        margin: How far a float32 cosine and a bar may be apart that are equal: twice the usual bound of the rounding
            of both, √dim · 2⁻²⁴ each; seen is a twentieth of it.
    """

    def __init__(self, bars: Bars, candidates: Part) -> None:
        self.bars, self._queries, self._candidates = bars, bars.queries, candidates
        self.margin = (candidates.matrix.shape[1] ** 0.5 + 4) * 2**-22
        self._high, self._low = ((bars.about + side * (TIE + self.margin)).float()[:, None] for side in (1, -1))
        self.above, self.tied = torch.zeros_like(bars.level), torch.zeros_like(bars.level)
        self.highest = torch.full_like(bars.about, -torch.inf, dtype=torch.float32)

    def add(self, similarity: torch.Tensor, buffer: torch.Tensor, start: int, first: int) -> None:
        """Count a tile, float32 [queries, candidates], that begins at a query and a candidate; overwrites the buffer.

        Comparisons that stay float32 are several times faster than those that make bools.
        """
        rows = slice(start, start + len(similarity))
        top = similarity.amax(1)
        self.highest[rows] = self.highest[rows].fmax(top)
        above = torch.gt(similarity, self._high[rows], out=buffer).sum(1)
        reached = torch.gt(similarity, self._low[rows], out=buffer).sum(1)
        self.above[rows] += above.long()
        near = ((reached > above) & ~top.isnan()).nonzero().flatten()  # beside NaN, float32 decides
        if len(near):
            self._decide(similarity[near], start + near, first)

    def _decide(self, similarity: torch.Tensor, queries: torch.Tensor, first: int) -> None:
        """Count what is near the bar of some queries, float32 [queries, candidates], by float64 cosines."""
        near = (similarity > self._low[queries]) & ~(similarity > self._high[queries])
        columns = near.any(0).nonzero().flatten()
        cosine = self._queries.exact(queries) @ self._candidates.exact(first + columns).T
        gap = (cosine - self.bars.exact(queries)[:, None]).masked_fill_(~near[:, columns], -torch.inf)
        self.above[queries] += (gap > TIE).sum(1)
        self.tied[queries] += (gap.abs() <= TIE).sum(1)

    def counts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Candidates above the bar, all where that is NaN, and candidates that tie with it, int64 [queries] each."""
        return self.above.masked_fill(self.bars.about.isnan(), len(self._candidates)), self.tied

    def exact_best(self, which: torch.Tensor) -> torch.Tensor:
        """The cosine of some queries with the best of all candidates, float64 [which]."""
        return torch.cat([self._best_of(part) for part in which.split(TILE[0])])

    def _best_of(self, which: torch.Tensor) -> torch.Tensor:
        """As `exact_best`; for the first candidate, if each tile holds one that is NaN."""
        highest, best = self.highest.new_full((len(which),), -torch.inf), torch.zeros_like(which)
        for first in range(0, len(self._candidates), TILE[1]):
            top, place = (self._queries.unit[which] @ self._candidates.unit[first : first + TILE[1]].T).max(1)
            best = torch.where(top > highest, first + place, best)
            highest = highest.fmax(top)
        return cosines(self._queries, self._candidates, (which, best))


def tally(
    queries: Part,
    candidates: Part,
    forth: Tally,
    back: Tally | None = None,
    hidden: Mapping[tuple[int, int], Pairs] | None = None,
) -> None:
    """Count all candidates of each query, and with the same products all queries of each candidate.

    Args:
        queries, candidates: What is compared.
        forth, back: Of the queries among the candidates, and of the candidates among the queries.
        hidden: Pairs that do not count, from `by_tile`.
    """
    buffers = queries.unit.new_empty(2, TILE[0] * TILE[1])
    for start, first in product(range(0, len(queries), TILE[0]), range(0, len(candidates), TILE[1])):
        left, right = queries.unit[start : start + TILE[0]], candidates.unit[first : first + TILE[1]]
        similarity, buffer = (space[: len(left) * len(right)].view(len(left), len(right)) for space in buffers)
        torch.mm(left, right.T, out=similarity)
        if hidden and (own := hidden.get((start, first))):
            similarity[own] = -torch.inf
        forth.add(similarity, buffer, start, first)
        if back is not None:
            back.add(similarity.T, buffer.T, first, start)


def by_tile(pairs: Pairs) -> dict[tuple[int, int], Pairs]:
    """The pairs in each tile as places in it, by where the tile begins."""
    places = [numbers % size for numbers, size in zip(pairs, TILE, strict=True)]
    begins = torch.stack([numbers - place for numbers, place in zip(pairs, places, strict=True)], 1)
    corners, which, counts = torch.unique(begins, dim=0, return_inverse=True, return_counts=True)
    parts = torch.stack(places)[:, which.argsort()].split(counts.tolist(), 1)
    return {(start, first): (own[0], own[1]) for (start, first), own in zip(corners.tolist(), parts, strict=True)}


def unsafe_first(safe: Tally, unsafe: Tally) -> torch.Tensor:
    """Whether the best of all candidates is an unsafe one, and so at a tie, bool [queries].

    Args:
        safe: Among the safe candidates without the partners.
        unsafe: Among the unsafe ones.
    """
    bars = safe.bars
    gap = unsafe.highest - torch.maximum(safe.highest, bars.about) + TIE
    clear = (gap.abs() > unsafe.margin) & safe.highest.isfinite() & unsafe.highest.isfinite()
    near = (~clear & ~bars.about.isnan()).nonzero().flatten()
    if len(near):
        gap[near] = unsafe.exact_best(near) - torch.maximum(safe.exact_best(near), bars.exact(near)) + TIE
    return ~(gap < 0)  # also where a query has no direction


def standing_of(queries: Part, candidates: Part, partners: Pairs) -> Standing:
    """Where each query's best partner stands among all candidates; a query or partner with NaN comes last."""
    found = Tally(Bars(queries, candidates, partners), candidates)
    tally(queries, candidates, found, hidden=by_tile(partners))
    return Standing.of(found)
