"""What a model does on held-out pairs: SafeGround and retrieval with intervals, zero-shot accuracy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from .calibration import CalibrationSet
from .errors import BadInput
from .knowledge import DataSet, zero_shot
from .metrics import bootstrap, ranks, safeground_samples
from .models import Model
from .profiler import BATCH_SIZE, Progress, count_batches, embed_inputs, pair_batches


@dataclass(frozen=True)
class Embeddings:
    """Normalised embeddings of a set's quadruples, float32 [n, dim] each, on the CPU, row for row."""

    safe_text: torch.Tensor
    unsafe_text: torch.Tensor
    safe_image: torch.Tensor
    unsafe_image: torch.Tensor


@dataclass(frozen=True)
class EvalResult:
    """Figures with intervals.

    Attributes:
        pairs: How many quadruples they are means over.
        figures: Name -> (mean, low, high), fractions with a bootstrap 95 % interval. SafeGround's nine by their
            names; R1_ts_vs and R1_vs_ts are Recall@1 among the safe items; R1_tu_union and R1_vu_union that of
            unsafe queries among all items, where the paired safe item is the hit.
        zero_shot: Data set -> `uwm.knowledge.ZeroShot.figures`.
        right: Data set -> whether each picture was classified rightly, bool [pictures]; in memory only.
    """

    pairs: int
    figures: dict[str, tuple[float, float, float]]
    zero_shot: dict[str, dict[str, Any]]
    right: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"pairs": self.pairs, "figures": dict(self.figures), "zero_shot": dict(self.zero_shot)}


@torch.no_grad()
def embed(
    model: Model,
    calibration: CalibrationSet,
    *,
    batch_size: int = BATCH_SIZE,
    workers: int = 2,
    progress: Progress | None = None,
) -> Embeddings:
    """Embeddings of every complete quadruple of a set. Raises BadInput when the set has none."""
    whole = CalibrationSet(tuple(p for p in calibration.pairs if p.has_text and p.has_image), calibration.root)
    if not whole.pairs:
        raise BadInput(f"{calibration.root}: no pair has both captions and pictures, which SafeGround needs")
    towers = ("text", "vision")
    batches: Iterable = pair_batches(model, whole, batch_size=batch_size, towers=towers, workers=workers)
    if progress is not None:
        batches = progress(batches, count_batches(whole, batch_size, towers), "embed")
    rows: dict[str, list[torch.Tensor]] = {"text": [], "vision": []}
    for batch in batches:
        for tower in towers:
            for inputs, mask in batch.sides(tower) or []:
                rows[tower].append(_encode(model, inputs, mask))
    sides = [torch.cat(rows[tower][start::2]) for tower in towers for start in (0, 1)]
    return Embeddings(*sides)


def _encode(model: Model, inputs: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return F.normalize(embed_inputs(model, inputs, mask), dim=-1).cpu()


def figures(embeddings: Embeddings, seed: int = 0) -> dict[str, tuple[float, float, float]]:
    """The figures of `EvalResult` as (mean, low, high)."""
    ts, tu, vs, vu = asdict(embeddings).values()
    own = torch.arange(len(ts))
    samples = safeground_samples(ts, tu, vs, vu) | {
        "R1_ts_vs": ranks(ts, vs, own) == 1,
        "R1_vs_ts": ranks(vs, ts, own) == 1,
        "R1_tu_union": ranks(tu, torch.cat([vs, vu]), own) == 1,
        "R1_vu_union": ranks(vu, torch.cat([ts, tu]), own) == 1,
    }
    return bootstrap(samples, seed)


def evaluate(
    model: Model,
    calib: CalibrationSet,
    *,
    data_sets: Mapping[str, DataSet] | None = None,
    batch_size: int = BATCH_SIZE,
    workers: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
) -> EvalResult:
    """Measure a model on pairs that it was not calibrated on (method.md's SafeGround, retrieval and knowledge).

    Args:
        model: Patched or not.
        calib: The pairs; only complete quadruples count.
        data_sets: For zero-shot accuracy, from `uwm.knowledge.open_data_sets`.
        batch_size, workers, progress: As in `uwm.score`.
        seed: For the bootstrap.
    """
    embeddings = embed(model, calib, batch_size=batch_size, workers=workers, progress=progress)
    shared: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "seed": seed, "progress": progress}
    known = {name: zero_shot(model, data, **shared) for name, data in (data_sets or {}).items()}
    return EvalResult(
        len(embeddings.safe_text),
        figures(embeddings, seed),
        {name: found.figures for name, found in known.items()},
        {name: found.right for name, found in known.items()},
    )


@dataclass(frozen=True)
class Requirement:
    """A condition on one figure: percent, or (`relative`) percent of change against the baseline."""

    figure: str
    sign: str
    value: float
    relative: bool

    def check(self, result: EvalResult, baseline: EvalResult | None) -> dict[str, Any]:
        """Whether it is met, with what was found. Raises BadInput when the result has no such figure."""
        found = 100 * _figure(result, self.figure)
        if self.relative:
            assert baseline is not None
            base = 100 * _figure(baseline, self.figure)
            if base == 0:
                raise BadInput(
                    f"--require: the baseline's {self.figure} is 0, so no change in % exists; use an absolute bound"
                )
            found = 100 * (found / base - 1)
        met = found >= self.value if self.sign == ">=" else found <= self.value
        text = f"{self.figure}{self.sign}{self.value:g}{'%' if self.relative else ''}"
        return {"requirement": text, "found": found, "met": met}


def parse_requirement(text: str, has_baseline: bool) -> Requirement:
    """Read ``GS>=4.5`` (percent) or ``top1>=-2%`` (change against the baseline). Raises BadInput."""
    parts = re.fullmatch(r"\s*([\w@:.-]+?)\s*(>=|<=)\s*([+-]?\d+(?:\.\d+)?)\s*(%?)\s*", text)
    if not parts:
        raise BadInput(f"--require {text!r}: expected FIGURE>=NUMBER or FIGURE<=NUMBER, such as GS>=4.5 or top1>=-2%")
    if parts[4] and not has_baseline:
        raise BadInput(f"--require {text!r}: a change in % needs --baseline MODEL to compare with")
    return Requirement(parts[1], parts[2], float(parts[3]), bool(parts[4]))


def _figure(result: EvalResult, name: str) -> float:
    """A figure by its name; zero-shot figures as ``top1`` (mean over data sets) or ``top1:DATASET``."""
    if name in result.figures:
        return result.figures[name][0]
    key, _, data_set = name.partition(":")
    values = [v[key] for n, v in result.zero_shot.items() if key in v and data_set in ("", n)]
    if not values:
        known = [*result.figures, *sorted({k for v in result.zero_shot.values() for k in v})]
        hint = "; zero-shot figures need --zero-shot FOLDER" if key.startswith("top1") else ""
        raise BadInput(f"--require: no figure {name!r}{hint}; there are {', '.join(known)}")
    return sum(values) / len(values)
