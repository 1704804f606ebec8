"""The editor `repel` (ours): see `repel_maths`. Importing this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import BadInput
from ...weights import WeightId
from ..changes import AddLowRank, Change, SetEntries
from ..editors import Pairs, Proposal, Statistics
from ..settings import setting

if TYPE_CHECKING:
    import torch

    from ...models import Model
    from ...statistics.embeddings import PairEmbeddings
    from ...statistics.pooled import PooledInputs
    from ...statistics.readout import Readout
    from .detector import Detector

TOWERS = ("text", "vision")
SIGNS = {"text": 1.0, "vision": -1.0}
KAPPA = 6.0  # the unit's input at the mean exceedance: there the activation is a ramp to 1e-4
INPUTS, EMBEDDINGS, READOUT = "inputs", "embeddings", "readout"
LOUD = 1e-3  # energy of the direction above which it is not empty


@dataclass(frozen=True)
class RepelSettings:
    """Settings of repel."""

    share: float = setting(0.2, float, "Share of safe inputs that may be touched, a tower  [default: 0.2]")
    strength: float = setting(1.2, float, "Push of an unsafe input, in norms of safe embeddings  [default: 1.2]")
    lean: float = setting(
        0.1, float, "Constant step of all inputs the other way, in norms of safe embeddings  [default: 0.1]"
    )
    units: str = setting(
        "one", str, "Hidden units a tower: one, or one for each concept of the set.", ("one", "concept")
    )
    safe_weight: float = setting(4.0, float, "λ: weight of the safe side in the detector  [default: 4]")
    penalty: float | None = setting(None, float, "ρ of the detector  [default: the best on held-out folds]")
    folds: int = setting(5, int, "Folds that the gate is set on  [default: 5]")


@dataclass
class RepelStatistics(Statistics):
    """Inputs of the last MLP at the pooled token, embeddings, and how they depend on its output.

    Attributes:
        layers: Tower -> the last MLP's two matrices; None where there is none with a bias.
        concepts: Modality -> the concept of each pair, in the order of the pass.
    """

    layers: dict[str, tuple[WeightId, WeightId] | None] = None  # type: ignore[assignment]
    concepts: Any = None


class Repel:
    """Editor: one hidden unit a tower detects the unsafe side and pushes captions and images apart along an empty
    direction of the embedding space (ours; see `repel_maths`). It changes pooled embeddings only."""

    name = "repel"
    title = "repel (a hidden unit that pushes unsafe captions and images apart)"
    source = "ours; uwm.editing.closed_form.repel_maths"
    Settings = RepelSettings

    def check(self, settings: RepelSettings) -> None:
        for name, low, high in (("share", 0, 1), ("safe_weight", 0, 1e6), ("strength", -1e-9, 100)):
            value = getattr(settings, name)
            if not low < value < high:
                least = "from 0" if name == "strength" else f"over {low}"
                raise BadInput(f"--{name.replace('_', '-')} {value}: expected a number {least}, below {high:g}")
        if not 0 <= settings.lean < 100:
            raise BadInput(f"--lean {settings.lean}: expected a number from 0, below 100")
        if settings.penalty is not None and settings.penalty <= 0:
            raise BadInput(f"--penalty {settings.penalty}: expected a number over 0")
        if settings.folds < 2:
            raise BadInput(f"--folds {settings.folds}: expected at least 2")

    def measured(self, settings: RepelSettings) -> Any:
        return (self.name,)

    def statistics(self, model: Model, pairs: Pairs, settings: RepelSettings) -> RepelStatistics:
        from ...statistics.embeddings import PairEmbeddings
        from ...statistics.pooled import PooledInputs
        from ...statistics.readout import Readout

        for what, there in (("the model", model.modalities), ("the set", pairs.modalities)):
            if missing := [tower for tower in TOWERS if tower not in there]:
                raise BadInput(f"--method repel pushes captions and images apart, and {what} has no {missing[0]} side")
        layers = {tower: _last_mlp(model, tower) for tower in TOWERS}
        weights = [weight for pair in layers.values() if pair is not None for weight in pair]
        outputs = {tower: pair[1] for tower, pair in layers.items() if pair is not None}
        reducers = {
            INPUTS: PooledInputs(model, weights),
            EMBEDDINGS: PairEmbeddings(normalised=False),
            READOUT: Readout(model, outputs),
        }
        preserve = {INPUTS: PooledInputs(model, weights), EMBEDDINGS: PairEmbeddings(normalised=False)}
        return RepelStatistics(TOWERS, reducers, preserve, layers=layers, concepts=pairs.concepts)

    def edit(self, model: Model, statistics: RepelStatistics, settings: RepelSettings, seed: int = 0) -> Proposal:
        return _Fit(model, statistics, settings, seed).proposal()

    def control(self, model: Model, statistics: RepelStatistics, settings: RepelSettings, seed: int = 0) -> Proposal:
        return _Fit(model, statistics, settings, seed, control=True).proposal()


EDITOR = Repel()


def _last_mlp(model: Model, tower: str) -> tuple[WeightId, WeightId] | None:
    """The last MLP of a tower, if its first matrix has a bias, which the gate needs."""
    pair = model.last_mlp(tower)
    if pair is None or WeightId(pair[0].tower, pair[0].block, f"{pair[0].slot}.bias") not in model.tensors:
        return None
    return pair


class _Fit:
    """One fit of all that repel sets, or of its control."""

    def __init__(
        self, model: Model, statistics: RepelStatistics, settings: RepelSettings, seed: int, control: bool = False
    ) -> None:
        self._model, self._settings, self._seed, self._control = model, settings, seed, control
        self._layers, self._concepts = statistics.layers, statistics.concepts
        self._inputs: PooledInputs = statistics.reducers[INPUTS]
        self._embeddings: PairEmbeddings = statistics.reducers[EMBEDDINGS]
        self._readout: Readout = statistics.reducers[READOUT]
        self._preserve = statistics.preserve

    def proposal(self) -> Proposal:
        """The changes of both towers."""
        from .repel_maths import empty_direction

        written = [tower for tower in TOWERS if self._layers[tower] is not None]
        every = [side for tower in TOWERS for side in self._embeddings.sides(tower)]
        e, energy = empty_direction(every, [self._readout.jacobian(tower) for tower in written])
        changes: dict[WeightId, Change] = {}
        report: dict[str, dict[str, Any]] = {}
        warnings = []
        if energy > LOUD:
            warnings.append(
                f"repel: the emptiest direction holds {100 * energy:.2f} % of the embeddings' energy, so safe inputs "
                "are moved too; measure before you use this edit"
            )
        for tower in TOWERS:
            make = self._units if tower in written else self._rank_one
            found, report[tower] = make(tower, e * SIGNS[tower])
            report[tower]["direction_energy"] = energy
            changes |= found
            if tower not in written:
                warnings.append(
                    f"repel: the {tower} tower has no MLP at the pooled token, so its projection is changed without a "
                    "gate, which costs more accuracy"
                )
        notes = {name: {"tower": name.tower} for name in changes}
        return Proposal(changes, notes, report={"towers": report}, warnings=tuple(warnings))

    # ------------------------------------------------------------ gated units

    def _units(self, tower: str, e: torch.Tensor) -> tuple[dict[WeightId, Change], dict[str, Any]]:
        """Overwritten hidden units of the last MLP, one or one a concept."""
        import torch

        from .repel_maths import least_used, make_unit, push

        layers = self._layers[tower]
        assert layers is not None
        fc1, fc2 = layers
        w2 = self._model.stored(fc2).double()
        detectors = self._detectors(tower, self._sides(fc1))
        d = push(self._readout.jacobian(tower), e)
        used = torch.cat([self._inputs.sides(fc2)[0], *self._kept(fc2)]).double()
        numbers, carried = least_used(used, w2, len(detectors))
        height = self._settings.strength * self._readout.norm(tower)
        share = self._settings.share / len(detectors)
        units = [
            make_unit(detector, d, carried, int(number), share, height, KAPPA)
            for detector, number in zip(detectors.values(), numbers, strict=True)
        ]
        bias = WeightId(fc1.tower, fc1.block, f"{fc1.slot}.bias")
        where = torch.tensor([unit.number for unit in units])
        rows, columns = torch.arange(w2.shape[0]), torch.arange(len(units[0].row))
        changes: dict[WeightId, Change] = {
            fc1: SetEntries.of(
                (where[:, None] * len(columns) + columns).flatten(), torch.stack([unit.row for unit in units]).flatten()
            ),
            bias: SetEntries.of(where, [unit.bias for unit in units]),
            fc2: SetEntries.of(
                (rows[:, None] * w2.shape[1] + where).flatten(), torch.stack([u.column for u in units], 1).flatten()
            ),
        }
        changes |= self._lean(WeightId(fc2.tower, fc2.block, f"{fc2.slot}.bias"), d * self._readout.norm(tower))
        if len(units) == 1:
            return changes, units[0].report
        return changes, {f"{key} ({concept})": value for concept, unit in zip(detectors, units, strict=True)
                         for key, value in unit.report.items()}  # fmt: skip

    def _lean(self, name: WeightId, step: torch.Tensor) -> dict[WeightId, Change]:
        """A constant step of the other sign, which gives safe captions and images back some of their nearness."""
        if not self._settings.lean or name not in self._model.tensors:
            return {}
        moved = self._model.stored(name).double() - self._settings.lean * step
        return {name: SetEntries.of(range(len(moved)), moved)}

    def _sides(self, weight: WeightId) -> list[torch.Tensor]:
        """Inputs of both sides in float64, [n, in] each."""
        return [side.double() for side in self._inputs.sides(weight)]

    def _kept(self, weight: WeightId) -> list[torch.Tensor]:
        """Inputs of the preservation set, [n, in], if there is one."""
        kept: PooledInputs = self._preserve[INPUTS]
        return [side.double() for side in kept.sides(weight)]

    def _detectors(
        self, tower: str, sides: list[torch.Tensor], kept: list[torch.Tensor] | None = None
    ) -> dict[str, Detector]:
        """Concept -> its detector; one for all, or one for each concept against the whole safe side."""
        import torch

        from .detector import draw_folds

        layers = self._layers[tower]
        extra = kept if kept is not None or layers is None else self._kept(layers[0])
        safe, unsafe = torch.cat([sides[0], *(extra or [])]), sides[1]
        folds = draw_folds(len(unsafe), self._settings.folds, self._seed)
        rest = draw_folds(max(len(safe) - len(unsafe), 1), self._settings.folds, self._seed + 1)
        both = torch.cat([folds, rest[: len(safe) - len(unsafe)]]), folds
        groups = self._groups(tower, len(unsafe))
        return {c: self._detector(safe, unsafe[rows], (both[0], both[1][rows])) for c, rows in groups.items()}

    def _groups(self, tower: str, count: int) -> dict[str, torch.Tensor]:
        """Concept -> rows of the unsafe side that its unit detects."""
        import torch

        if self._settings.units == "one":
            return {"": torch.arange(count)}
        concepts = self._concepts.get(tower, ())
        if not any(concepts):
            raise BadInput("--units concept: the pairs name no concepts")
        return {c: torch.tensor([row for row, name in enumerate(concepts) if name == c]) for c in sorted(set(concepts))}

    def _detector(self, safe: torch.Tensor, unsafe: torch.Tensor, folds: tuple[torch.Tensor, torch.Tensor]) -> Detector:
        from .detector import PENALTIES, fit_detector
        from .repel_maths import random_detector

        penalties = PENALTIES if self._settings.penalty is None else (self._settings.penalty,)
        found = fit_detector(safe, unsafe, folds, self._settings.safe_weight, penalties)
        return random_detector(found, safe, unsafe, self._seed) if self._control else found

    # ------------------------------------------------------------ without a gate

    def _rank_one(self, tower: str, e: torch.Tensor) -> tuple[dict[WeightId, Change], dict[str, Any]]:
        """A rank-one change of the projection, where there is no MLP at the pooled token."""
        from .repel_maths import rank_one

        name = WeightId(tower, None, "proj")
        if name not in self._model.tensors:
            raise BadInput(f"--method repel: the {tower} tower has neither an MLP at the pooled token nor a projection")
        sides = [side.double() for side in self._embeddings.sides(tower)]
        kept: PairEmbeddings = self._preserve[EMBEDDINGS]
        extra = [side.double() for side in kept.sides(tower)]
        (detector, *_) = self._detectors(tower, sides, extra).values()
        projection = self._model.stored(name).double()
        height = self._settings.strength * self._readout.norm(tower)
        left, right = rank_one(sides[0], detector, e, projection, height)
        return {name: AddLowRank.of(left, right)}, {"detector_auc": detector.auc, "penalty": detector.penalty}
