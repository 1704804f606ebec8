"""Pairs whose unsafe side the model cannot tell from the safe one, and how far an edit depends on them.

The authors of ShieldCLIP (arXiv 2609.39688) found 39 % of nominally unsafe pictures and 17 % of texts to be safe.
Nothing here knows what is unsafe: a pair is doubted when the model sees no difference between its sides, or another one
than in the other pairs of its concept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from .calibration import CalibrationSet
from .editing.entries.editor import TEXT_LAYERS, VISION_LAYERS
from .editing.entries.selection import top_mass
from .editing.entries.uwm import UwmScorer
from .embedding import embed_tower
from .models import Model
from .ranks import TIE
from .statistics.batches import BATCH_SIZE, Progress, count_batches, pair_batches
from .statistics.channel_norms import ChannelNorms, TokenStatistics
from .statistics.embeddings import PairEmbeddings
from .statistics.passes import run_pass
from .weights import WeightId

MIN_PAIRS = 3  # of a concept, to say where it goes
TOWERS = ("text", "vision")
REASONS = {
    "picture": "the unsafe picture fits the safe caption as well as the unsafe one",
    "caption": "the unsafe caption fits the safe picture as well as the unsafe one",
    "astray": "the step from safe to unsafe goes against that of the concept's other pairs",
}

NEEDS = {
    "picture": "no pair has captions and images of both sides that the model reads",
    "caption": "no pair has captions and images of both sides that the model reads",
    "astray": f"no concept has {MIN_PAIRS} pairs",
}


@dataclass(frozen=True)
class LabelNoise:
    """Which pairs of a set are doubted and why, bool [pairs] each; a pair that lacks what a reason needs is not.

    Which item is the wrong one is not said: a picture of something else and a caption of the safe picture fail the same
    comparison.

    Attributes:
        ids: Of the pairs.
        picture: The unsafe picture is no closer to the unsafe caption than to the safe one, cos(v_u, t_u) ≤
            cos(v_u, t_s): it may be safe.
        caption: The unsafe caption is no closer to the unsafe picture than to the safe one, cos(t_u, v_u) ≤
            cos(t_u, v_s).
        astray: The step from the safe to the unsafe side goes against the mean step of the other pairs of its concept.
        able: Reason -> which pairs have what it needs, bool [pairs]; a reason that is not there could judge all.
    """

    ids: tuple[str, ...]
    picture: torch.Tensor
    caption: torch.Tensor
    astray: torch.Tensor
    able: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def flagged(self) -> torch.Tensor:
        """The pairs doubted for any reason, bool [pairs]."""
        return self.picture | self.caption | self.astray

    def as_dict(self) -> dict[str, Any]:
        """Counts for a report.

        Returns:
            ``checked``, pairs that a reason could judge; ``flagged`` and its ``share`` of these; how many for each
            reason; and ``judged``, reason -> how many pairs it could judge.
        """
        flagged = int(self.flagged.sum())
        counts = {reason: int(getattr(self, reason).sum()) for reason in REASONS}
        able = {reason: self.able.get(reason, torch.ones(len(self.ids), dtype=torch.bool)) for reason in REASONS}
        checked = int(torch.stack([*able.values()]).any(0).sum())
        judged = {reason: int(rows.sum()) for reason, rows in able.items()}
        share = flagged / checked if checked else 0.0
        return {"checked": checked, "flagged": flagged, "share": share, **counts, "judged": judged}

    def named(self) -> dict[str, list[str]]:
        """Reason -> ids of the pairs."""
        rows = {reason: getattr(self, reason).nonzero().flatten().tolist() for reason in REASONS}
        return {reason: [self.ids[row] for row in found] for reason, found in rows.items()}


def find_label_noise(
    model: Model,
    calib: CalibrationSet,
    *,
    batch_size: int = BATCH_SIZE,
    workers: int = 2,
    progress: Progress | None = None,
) -> LabelNoise:
    """Look for wrong labels with an unedited model.

    Args:
        model: It decides what is told apart: what it does not know, it doubts.
        calib: The pairs; what a pair lacks is not judged.
        batch_size, workers, progress: As in `uwm.score`.

    Raises:
        InvalidResult: NaN or infinite embeddings.
    """
    passed: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": progress}
    sides: dict[str, list[torch.Tensor]] = {tower: [] for tower in TOWERS}
    for tower in model.modalities:
        sides[tower] = _spread(embed_tower(model, calib, tower, **passed), _has(calib, tower))
    return label_noise(sides, [p.id for p in calib.pairs], [p.concept for p in calib.pairs])


def label_noise_of(kept: PairEmbeddings, calib: CalibrationSet) -> LabelNoise | None:
    """As `find_label_noise`, from the embeddings that a pass over `calib` has kept; None when it kept none.

    Of several text towers the first one counts: ``uwm.score(…, also=[kept])``.
    """
    sides = {tower: kept.sides(tower) for tower in TOWERS}
    if not any(sides.values()):
        return None
    spread = {tower: _spread(side, _has(calib, tower)) for tower, side in sides.items()}
    return label_noise(spread, [p.id for p in calib.pairs], [p.concept for p in calib.pairs])


def label_noise(sides: Mapping[str, Sequence[torch.Tensor]], ids: Sequence[str], concepts: Sequence[str]) -> LabelNoise:
    """`find_label_noise` on embeddings.

    Args:
        sides: ``text``, ``vision`` -> normalised embeddings of the safe and the unsafe side, [pairs, dim] each; rows of
            zeros where a pair has none, or an empty list where no pair has any.
        ids, concepts: Of the pairs.
    """
    none = torch.zeros(len(ids), dtype=torch.bool)
    picture, caption, both = none, none, none
    if all(sides[tower] for tower in TOWERS):
        (ts, tu), (vs, vu) = (sides[tower] for tower in TOWERS)
        both = tu.any(1) & vu.any(1)
        own = (tu * vu).sum(1)
        picture, caption = both & (own <= (vu * ts).sum(1) + TIE), both & (own <= (tu * vs).sum(1) + TIE)
    steps = F.normalize(torch.cat([unsafe - safe for safe, unsafe in filter(None, sides.values())], 1), dim=1)
    there = torch.stack([side.any(1) for found in sides.values() for side in found]).any(0)
    astray, placed = _against_their_concept(steps, concepts, there)
    able = {"picture": both, "caption": both, "astray": placed}
    return LabelNoise(tuple(ids), picture, caption, astray, able)


def _against_their_concept(
    steps: torch.Tensor, concepts: Sequence[str], there: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether each step [pairs, dim] has no positive product with the mean of the other steps of its concept.

    Args:
        steps, concepts: Of the pairs.
        there: Which pairs have any side, bool [pairs].

    Returns:
        That, and which pairs could be compared: those of concepts with `MIN_PAIRS` of them; bool [pairs] each.
    """
    found, placed = torch.zeros(len(steps), dtype=torch.bool), torch.zeros(len(steps), dtype=torch.bool)
    for concept in sorted(set(concepts)):
        rows = torch.tensor([row for row, name in enumerate(concepts) if name == concept and there[row]])
        if len(rows) >= MIN_PAIRS:
            own = steps[rows].double()
            found[rows] = (own * (own.sum(0) - own)).sum(1) <= 0
            placed[rows] = True
    return found, placed


def _has(calib: CalibrationSet, tower: str) -> torch.Tensor:
    return torch.tensor([p.has_text if tower == "text" else p.has_image for p in calib.pairs])


def _spread(sides: Sequence[torch.Tensor], there: torch.Tensor) -> list[torch.Tensor]:
    """Rows of the pairs that have a modality, among rows of zeros for those that do not."""
    result = []
    for side in sides:
        whole = torch.zeros(len(there), side.shape[1])
        whole[there] = side
        result.append(whole)
    return result


# ---------------------------------------------------------------- how far the edit depends on them


class _Groups:
    """One UWM scorer a group of pairs; takes the place of one scorer in `ChannelNorms`."""

    def __init__(self, weight: WeightId, matrix: torch.Tensor, groups: torch.Tensor) -> None:
        self._groups = groups  # [pairs], the group of each, in the order in which they come
        self._start = 0
        self._scorers = {int(group): UwmScorer(weight, matrix) for group in groups.unique()}

    def update(self, safe: TokenStatistics, unsafe: TokenStatistics) -> None:
        """Take in one batch, each pair into its group."""
        groups = self._groups[self._start : self._start + len(safe.norm)]
        self._start += len(groups)
        for group, scorer in self._scorers.items():
            rows = (groups == group).to(safe.norm.device)
            if rows.any():
                scorer.update(*(TokenStatistics(s.norm[rows], s.std[rows], s.tokens[rows]) for s in (safe, unsafe)))

    def scores(self, *groups: int) -> torch.Tensor:
        """The scores from the pairs of these groups alone, [out, in]."""
        chosen = [self._scorers[group] for group in groups if group in self._scorers]
        return sum(s.pairs * s.scores().double() for s in chosen) / sum(s.pairs for s in chosen)  # type: ignore[return-value]


FLAGGED, CONTROL, REST = range(3)


def dependence(
    model: Model,
    calib: CalibrationSet,
    noise: LabelNoise,
    *,
    mass: float,
    text_layers: str | Sequence[str] = TEXT_LAYERS,
    vision_layers: str | Sequence[str] = VISION_LAYERS,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    workers: int = 2,
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """How much of UWM's selection stays when the flagged pairs are left out, from one pass over the pairs.

    Args:
        model, calib, noise: As in and from `find_label_noise`.
        mass: τ.
        text_layers, vision_layers, batch_size, workers, progress: As in `uwm.score`.
        seed: For the control.

    Returns:
        Tower -> ``flagged`` pairs left out; ``selected`` entries with all pairs; ``stay``, the share of these still
        selected without the flagged pairs; ``stay_random``, without as many others drawn at random (the control).
        Towers without flagged pairs, or with none but flagged ones, are left out.
    """
    patterns = {"text": text_layers, "vision": vision_layers}
    found = {}
    for tower in TOWERS:
        there = _has(calib, tower) & (tower in model.editable)
        flagged = noise.flagged[there]
        weights = model.match(patterns[tower], tower) if there.any() else []
        if not weights or not flagged.any() or flagged.all():
            continue
        groups = _draw_control(flagged, seed)
        scorers = {weight: _Groups(weight, model.parameter(weight), groups) for weight in weights}
        batches: Iterable = pair_batches(model, calib, batch_size=batch_size, towers=[tower], workers=workers)
        if progress is not None:
            batches = progress(batches, count_batches(calib, batch_size, [tower]), f"profile {tower}")
        run_pass(model, batches, [ChannelNorms(scorers)], {w.tower for w in weights})
        found[tower] = {"flagged": int(flagged.sum()), **_overlaps(scorers.values(), mass)}
    return found


def _draw_control(flagged: torch.Tensor, seed: int) -> torch.Tensor:
    """The group of each pair: flagged; as many others, or as there are but one; the rest."""
    others = (~flagged).nonzero().flatten()
    size = min(int(flagged.sum()), len(others) - 1)
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))
    groups = torch.full((len(flagged),), REST)
    groups[others[order[:size]]] = CONTROL
    groups[flagged] = FLAGGED
    return groups


def _overlaps(scorers: Iterable[_Groups], mass: float) -> dict[str, Any]:
    selected, stay, stay_random = 0, 0, 0
    for scorer in scorers:
        whole = top_mass(scorer.scores(FLAGGED, CONTROL, REST), mass)
        selected += len(whole)
        stay += int(torch.isin(whole, top_mass(scorer.scores(CONTROL, REST), mass)).sum())
        stay_random += int(torch.isin(whole, top_mass(scorer.scores(FLAGGED, REST), mass)).sum())
    return {"selected": selected, "stay": stay / selected, "stay_random": stay_random / selected}


# ---------------------------------------------------------------- for `uwm calib-check`


def report(
    model: Model,
    calib: CalibrationSet,
    *,
    mass: float,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    workers: int = 2,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """`find_label_noise` and `dependence` as a plain dictionary: counts, ids by reason, and what stays of the edit."""
    passed: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": progress}
    noise = find_label_noise(model, calib, **passed)
    stays = dependence(model, calib, noise, mass=mass, seed=seed, **passed)
    return {**noise.as_dict(), "ids": noise.named(), "mass": mass, "dependence": stays}


def not_run(found: Mapping[str, Any]) -> dict[str, str]:
    """Reason -> why it could judge no pair; of `LabelNoise.as_dict`, which an earlier version wrote without these."""
    judged = found.get("judged", {})
    return {reason: why for reason, why in NEEDS.items() if judged.get(reason, 1) == 0}


def describe(found: Mapping[str, Any]) -> list[str]:
    """The same in lines for people; of the ids the first five for each reason."""
    told = f"{found['flagged']} of {found['checked']} pairs doubted ({100 * found['share']:.1f} %)"
    lines = [f"label noise: {told if found['checked'] else 'not checked'}"]
    lines += [f"  not run: whether {REASONS[reason]}: {why}" for reason, why in not_run(found).items()]
    for reason, meaning in REASONS.items():
        if ids := found["ids"][reason]:
            lines.append(f"  {len(ids)} where {meaning}: {', '.join(ids[:5])}{', …' if len(ids) > 5 else ''}")
    for tower, stays in found["dependence"].items():
        lines.append(
            f"  {tower}: {100 * stays['stay']:.1f} % of the entries that τ {found['mass']:g} selects stay without its "
            f"{stays['flagged']} doubted pairs; {100 * stays['stay_random']:.1f} % without as many others"
        )
    return lines
