"""What repel sets, from its statistics: see `repel_maths`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ...errors import BadInput, InvalidResult
from ...models import Model
from ...statistics.embeddings import PairEmbeddings
from ...statistics.keys import InputKeys
from ...statistics.pooled import PooledInputs
from ...statistics.readout import Readout
from ...weights import WeightId
from ..changes import AddLowRank, Change, SetEntries
from ..editors import Proposal
from .detector import PENALTIES, Detector, draw_folds, fit_detector, fold_keys
from .repel_maths import LOUD, Unit, empty_direction, least_used, make_unit, push, random_detector, rank_one
from .towers import bias_of, is_gated

if TYPE_CHECKING:
    from .repel import RepelSettings, RepelStatistics

TOWERS = ("text", "vision")
SIGNS = {"text": 1.0, "vision": -1.0}
KAPPA = 6.0  # the unit's input at the mean exceedance: there the activation is a ramp to 1e-4
INPUTS, EMBEDDINGS, READOUT, KEYS = "inputs", "embeddings", "readout", "keys"
OTHER = "other"  # the concept of pairs whose own has too few
Made = TypeVar("Made")
Part = tuple[dict[WeightId, Change], dict[str, Any], list[str]]  # a tower's changes, its report, warnings


class Fit:
    """One fit of all that repel sets, or of its control."""

    def __init__(
        self, model: Model, statistics: RepelStatistics, settings: RepelSettings, seed: int, control: bool = False
    ) -> None:
        self._model, self._settings, self._seed, self._control = model, settings, seed, control
        self._layers, self._concepts = statistics.layers, statistics.concepts
        self._inputs: PooledInputs = statistics.reducers[INPUTS]
        self._embeddings: PairEmbeddings = statistics.reducers[EMBEDDINGS]
        self._readout: Readout = statistics.reducers[READOUT]
        self._keys: InputKeys = statistics.reducers[KEYS]
        self._preserve = statistics.preserve
        self._fitted = statistics.fitted
        self._pairs = {tower: self._once(("pairs", tower), self._fold_keys, tower) for tower in TOWERS}

    def _once(self, key: Any, make: Callable[..., Made], *args: Any) -> Made:
        """What `make` gives; from the statistics where it was made before."""
        if key not in self._fitted:
            self._fitted[key] = make(*args)
        return self._fitted[key]

    def _fold_keys(self, tower: str) -> tuple[list[bytes], bool]:
        return fold_keys([*zip(*self._keys.sides(tower), strict=True)])

    def proposal(self) -> Proposal:
        """The changes of both towers."""
        written = [tower for tower in TOWERS if self._layers[tower] is not None]
        e, energy = self._once("direction", self._direction, written)
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
            found, report[tower], more = make(tower, e * SIGNS[tower])
            report[tower]["direction_energy"] = energy
            changes |= found
            warnings.extend(more)
            if not self._pairs[tower][1]:
                warnings.append(
                    f"repel: most pairs are connected by {tower} inputs that they share, so the folds that its "
                    f"detector is judged on share some too, and the detector may look better than it is"
                )
        notes = {name: {"tower": name.tower} for name in changes}
        return Proposal(changes, notes, report={"towers": report}, warnings=tuple(warnings))

    def _direction(self, written: Sequence[str]) -> tuple[torch.Tensor, float]:
        every = [side for tower in TOWERS for side in self._embeddings.sides(tower)]
        return empty_direction(every, [self._readout.jacobian(tower) for tower in written])

    # ------------------------------------------------------------ gated units

    def _units(self, tower: str, e: torch.Tensor) -> Part:
        """Overwritten hidden units of the last MLP, one or one a concept."""
        layers = self._layers[tower]
        assert layers is not None
        fc1, fc2 = layers
        groups, hidden = self._groups(tower), self._model.parameter(fc2).shape[1]
        if len(groups) > hidden:
            raise BadInput(f"--units concept: {len(groups)} concepts, and {fc2} has {hidden} hidden units")
        share = self._settings.share / len(groups)
        kept: PooledInputs = self._preserve[INPUTS]
        detectors = self._detectors(tower, self._inputs.sides(fc1), kept.sides(fc1), groups, share)
        d = self._once(("push", tower), push, self._readout.jacobian(tower), e)
        numbers, carried = self._once(("used", tower, len(groups)), self._least_used, fc2, kept, len(groups))
        norm = self._once(("norm", tower), self._readout.norm, tower)
        height = self._settings.strength * norm
        units = [
            make_unit(detector, d, carried, int(number), share, height, KAPPA)
            for detector, number in zip(detectors, numbers, strict=True)
        ]
        lean, warnings = self._lean(fc2, d * norm)
        if len(units) == 1:
            report = units[0].report
        else:
            named = zip(groups, units, strict=True)
            report = {f"{key} ({concept})": value for concept, unit in named for key, value in unit.report.items()}
        return self._overwritten(fc1, fc2, units) | lean, report, warnings

    def _least_used(self, fc2: WeightId, kept: PooledInputs, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        used = torch.cat([self._inputs.sides(fc2)[0], *kept.sides(fc2)]).double()
        return least_used(used, self._model.stored(fc2).double(), count)

    def _overwritten(self, fc1: WeightId, fc2: WeightId, units: Sequence[Unit]) -> dict[WeightId, Change]:
        """Rows and biases of the first matrix, columns of the second."""
        width, hidden = len(units[0].row), self._model.parameter(fc2).shape[1]
        where = torch.tensor([unit.number for unit in units])
        bias = bias_of(self._model, fc1)
        assert bias is not None
        rows = where[:, None] * width + torch.arange(width)
        columns = torch.arange(len(units[0].column))[:, None] * hidden + where
        return {
            fc1: self._set(fc1, rows, torch.stack([unit.row for unit in units])),
            bias: self._set(bias, where, torch.tensor([unit.bias for unit in units], dtype=torch.float64)),
            fc2: self._set(fc2, columns, torch.stack([unit.column for unit in units], 1)),
        }

    def _lean(self, fc2: WeightId, step: torch.Tensor) -> tuple[dict[WeightId, Change], list[str]]:
        """A constant step of the other sign, which gives safe captions and images back some of their nearness."""
        if not self._settings.lean:
            return {}, []
        name = bias_of(self._model, fc2)
        if name is None:
            return {}, [f"repel: {fc2} has no bias, so the {fc2.tower} tower does not lean"]
        moved = self._model.stored(name).double() - self._settings.lean * step
        return {name: self._set(name, torch.arange(len(moved)), moved)}, []

    def _set(self, name: WeightId, indices: torch.Tensor, values: torch.Tensor) -> SetEntries:
        """New values of a tensor. Raises InvalidResult where its type cannot hold them."""
        dtype = self._once(("dtype", name), lambda: self._model.stored(name).dtype)
        if not torch.isfinite(values.to(dtype)).all():
            raise InvalidResult(
                f"{name}: a new value of {float(values.abs().max()):.3g} does not fit into {str(dtype).split('.')[1]}; "
                "edit a float32 or bfloat16 copy of the model"
            )
        return SetEntries.of(indices.flatten(), values.flatten())

    # ------------------------------------------------------------ detectors

    def _detectors(
        self,
        tower: str,
        sides: Sequence[torch.Tensor],
        kept: Sequence[torch.Tensor],
        groups: dict[str, torch.Tensor],
        share: float,
    ) -> list[Detector]:
        """One for each group of rows of the unsafe side, against the whole safe side, preserved inputs included."""
        chosen = self._settings
        decided = ("detectors", tower, chosen.safe_weight, chosen.penalty, chosen.folds, chosen.units, self._seed)
        found = self._once(decided, self._fit_detectors, tower, sides, kept, groups)
        if not self._control:
            return found
        safe, unsafe, seed = torch.cat([sides[0], *kept]).double(), sides[1].double(), self._seed * 1_000_003
        return [
            random_detector(detector, safe, unsafe[rows], share, seed + number)
            for number, (detector, rows) in enumerate(zip(found, groups.values(), strict=True))
        ]

    def _fit_detectors(
        self, tower: str, sides: Sequence[torch.Tensor], kept: Sequence[torch.Tensor], groups: dict[str, torch.Tensor]
    ) -> list[Detector]:
        safe, unsafe = torch.cat([sides[0], *kept]).double(), sides[1].double()
        pairs, others = self._folds(tower, groups)
        penalties = PENALTIES if self._settings.penalty is None else (self._settings.penalty,)
        return [
            fit_detector(
                safe, unsafe[rows], (torch.cat([pairs, others]), pairs[rows]), self._settings.safe_weight, penalties
            )
            for rows in groups.values()
        ]

    def _folds(self, tower: str, groups: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Folds of the pairs and of the preserved inputs; those that hold an equal input are in one."""
        safe, unsafe = self._keys.sides(tower)
        keys, _ = self._pairs[tower]
        if len({*keys}) < 2:
            raise BadInput(f"--method repel needs at least 2 different pairs for the {tower} tower, to judge it on one")
        names: dict[bytes, str] = {}
        for name, rows in sorted(groups.items(), reverse=True):
            names |= {keys[row]: name for row in rows.tolist()}
        folds = draw_folds(keys, [names[key] for key in keys], self._settings.folds, self._seed)
        for name, rows in groups.items():
            if len({*folds[rows].tolist()}) < 2:
                raise BadInput(
                    f"--units concept: the {tower} inputs of concept {name!r} are shared with other pairs, so none can "
                    "be held out to set its gate; use --units one"
                )
        placed = dict(sorted(zip([*safe, *unsafe], [*folds.tolist()] * 2, strict=True), reverse=True))
        kept: InputKeys = self._preserve[KEYS]
        (others, *_) = [*kept.sides(tower), []]
        drawn = draw_folds(others, [""] * len(others), int(folds.max()) + 1, self._seed).tolist()
        of_others = [placed.get(key, fold) for key, fold in zip(others, drawn, strict=True)]
        return folds, torch.tensor(of_others, dtype=torch.long)

    def _groups(self, tower: str) -> dict[str, torch.Tensor]:
        """Concept -> rows of the unsafe side that its unit detects; concepts of fewer pairs than folds are joined."""
        keys, _ = self._pairs[tower]
        if self._settings.units == "one":
            return {"": torch.arange(len(keys))}
        concepts = self._concepts.get(tower, ())
        if not any(concepts):
            raise BadInput("--units concept: the pairs name no concepts")
        different: dict[str, set[bytes]] = {}
        for concept, key in zip(concepts, keys, strict=True):
            different.setdefault(concept or OTHER, set()).add(key)
        joined, count = {OTHER}, len(different.get(OTHER, ()))
        for concept in sorted(different, key=lambda concept: (len(different[concept]), concept)):
            small = len(different[concept]) < self._settings.folds
            if concept != OTHER and (small or 0 < count < self._settings.folds):
                joined.add(concept)
                count += len(different[concept])
        names = [OTHER if concept in joined or not concept else concept for concept in concepts]
        return {name: torch.tensor([n for n, own in enumerate(names) if own == name]) for name in sorted({*names})}

    # ------------------------------------------------------------ without a gate

    def _rank_one(self, tower: str, e: torch.Tensor) -> Part:
        """A rank-one change of the projection, where there is no MLP at the pooled token that can hold a gate."""
        mlp = self._model.last_mlp(tower)
        lacks = "MLP at the pooled token" if mlp is None else "bias of its last MLP's first layer"
        lacks = "plain MLP at the pooled token" if mlp is not None and is_gated(self._model, mlp) else lacks
        name = WeightId(tower, None, "proj")
        if name not in self._model.tensors:
            raise BadInput(f"--method repel: the {tower} tower has no {lacks} to hold a gate, and no projection")
        sides, kept = self._embeddings.sides(tower), self._preserve[EMBEDDINGS].sides(tower)
        everything = {"": torch.arange(len(sides[1]))}
        (detector,) = self._detectors(tower, sides, kept, everything, self._settings.share)
        mean = torch.cat([sides[0], *kept]).double().mean(0)
        bias = bias_of(self._model, name)
        mean = mean if bias is None else mean - self._model.stored(bias).double()
        height = self._settings.strength * self._readout.norm(tower)
        left, right = rank_one(mean, detector, e, self._model.stored(name).double(), height)
        warning = (
            f"repel: the {tower} tower has no {lacks} to hold a gate, so its projection is changed without one, which "
            "costs more accuracy"
        )
        report = {"detector_auc": detector.auc, "penalty": detector.penalty}
        return {name: AddLowRank.of(left, right)}, report, [warning]
