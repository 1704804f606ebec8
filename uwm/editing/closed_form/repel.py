"""The editor `repel` (ours): see `repel_maths`. Importing this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...errors import BadInput
from ...weights import WeightId
from ..editors import Pairs, Proposal, Statistics
from ..settings import Range, flag, setting
from .towers import bias_of, is_gated

if TYPE_CHECKING:
    from ...models import Model


@dataclass(frozen=True)
class RepelSettings:
    """Settings of repel."""

    share: float = setting(
        0.2,
        float,
        "Share of safe inputs that may be touched, a tower  [default: 0.2]",
        search=Range(0.005, 0.5, log=True),
    )
    strength: float = setting(
        1.2,
        float,
        "Push of an unsafe input, in norms of safe embeddings  [default: 1.2]",
        search=Range(0.2, 4, log=True),
    )
    lean: float = setting(
        0.1,
        float,
        "Constant step of all inputs the other way, in norms of safe embeddings  [default: 0.1]",
        search=Range(0, 0.4),
    )
    units: str = setting(
        "one", str, "Hidden units a tower: one, or one for each concept of the set.", ("one", "concept")
    )
    safe_weight: float = setting(
        4.0, float, "λ: weight of the safe side in the detector  [default: 4]", search=(1.0, 4.0, 16.0, 64.0)
    )
    penalty: float | None = setting(None, float, "ρ of the detector  [default: the best on held-out folds]")
    folds: int = setting(5, int, "Folds that the gate is set on  [default: 5]")


@dataclass
class RepelStatistics(Statistics):
    """Inputs of the last MLP at the pooled token, embeddings, and how they depend on its output.

    Attributes:
        layers: Tower -> the last MLP's two matrices; None where there is none with a bias.
        concepts: Modality -> the concept of each pair, in the order of the pass.
        fitted: What was worked out already, by what decides it: many settings share a direction and detectors.
    """

    layers: dict[str, tuple[WeightId, WeightId] | None] = None  # type: ignore[assignment]
    concepts: Any = None
    fitted: dict[Any, Any] = field(default_factory=dict)


class Repel:
    """Editor: one hidden unit a tower detects the unsafe side and pushes captions and images apart along an empty
    direction of the embedding space (ours; see `repel_maths`). It changes pooled embeddings only."""

    name = "repel"
    title = "repel (a hidden unit that pushes unsafe captions and images apart)"
    source = "ours; uwm.editing.closed_form.repel_maths"
    Settings = RepelSettings

    def check(self, settings: RepelSettings) -> None:
        for name, high in (("share", 1), ("safe_weight", 1e6)):
            if not 0 < getattr(settings, name) < high:
                raise _wrong(settings, name, f"a number over 0, below {high:g}")
        for name in ("strength", "lean"):
            if not 0 <= getattr(settings, name) < 100:
                raise _wrong(settings, name, "a number from 0, below 100")
        if settings.penalty is not None and not 0 < settings.penalty < 1e6:
            raise _wrong(settings, "penalty", "a number over 0, below 1e+06")
        if settings.folds < 2:
            raise _wrong(settings, "folds", "at least 2")

    def measured(self, settings: RepelSettings) -> Any:
        return (self.name,)

    def statistics(self, model: Model, pairs: Pairs, settings: RepelSettings) -> RepelStatistics:
        from ...statistics.embeddings import PairEmbeddings
        from ...statistics.keys import InputKeys
        from ...statistics.pooled import PooledInputs
        from ...statistics.readout import Readout
        from .repel_fit import EMBEDDINGS, INPUTS, KEYS, READOUT, TOWERS

        for tower in TOWERS:
            if tower not in model.editable:
                raise BadInput(f"--method repel pushes captions and images apart, and {model.lacks(tower)}")
            if tower not in pairs.modalities:
                raise BadInput(f"--method repel pushes captions and images apart, and the set has no {tower} side")
        layers = {tower: _last_mlp(model, tower) for tower in TOWERS}
        weights = [weight for pair in layers.values() if pair is not None for weight in pair]
        outputs = {tower: pair[1] for tower, pair in layers.items() if pair is not None}
        reducers, preserve = (
            {INPUTS: PooledInputs(model, weights), EMBEDDINGS: PairEmbeddings(normalised=False), KEYS: InputKeys()}
            for _ in range(2)
        )
        reducers |= {READOUT: Readout(model, outputs)}
        return RepelStatistics(TOWERS, reducers, preserve, layers=layers, concepts=pairs.concepts)

    def edit(self, model: Model, statistics: RepelStatistics, settings: RepelSettings, seed: int = 0) -> Proposal:
        from .repel_fit import Fit

        return Fit(model, statistics, settings, seed).proposal()

    def control(self, model: Model, statistics: RepelStatistics, settings: RepelSettings, seed: int = 0) -> Proposal:
        from .repel_fit import Fit

        return Fit(model, statistics, settings, seed, control=True).proposal()


EDITOR = Repel()


def _wrong(settings: RepelSettings, name: str, expected: str) -> BadInput:
    return BadInput(f"--{flag(name)} {getattr(settings, name)}: expected {expected}")


def _last_mlp(model: Model, tower: str) -> tuple[WeightId, WeightId] | None:
    """The last MLP of a tower, if it can hold a gate: with a bias, and each hidden unit a row of one matrix."""
    pair = model.last_mlp(tower)
    if pair is None or bias_of(model, pair[0]) is None or is_gated(model, pair):
        return None
    return pair
