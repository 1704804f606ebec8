"""Editors that score every entry of chosen weights and change those of the highest scores: UWM and its comparisons.

A new scorer is a file beside this one and a row below, with an entry point in setup.cfg. Importing this needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import BadInput, InvalidResult
from ...weights import WeightId
from ..editors import Pairs, Proposal, Statistics
from ..settings import Range, setting

if TYPE_CHECKING:
    import torch

    from ...models import Model
    from ...statistics.batches import PairBatch
    from ...statistics.gradients import GradientSums, QuadrupleEmbeddings
    from .scores import Scores

    Loss = Callable[[QuadrupleEmbeddings, QuadrupleEmbeddings], torch.Tensor]

TEXT_LAYERS, VISION_LAYERS = "out_proj", "fc2"
RULES = ("top-mass", "top-fraction")
VARIANTS = ("ratio", "ratio-of-means", "difference", "unsafe-only")  # of UWM; the first is the paper's own
TOP_MASS = {"text": "top-mass", "vision": "top-mass"}
TOP_FRACTION = {"text": "top-fraction", "vision": "top-fraction"}


def _layers(modality: str, default: str) -> Callable[[Model], tuple[str, ...]]:
    """What a search tries of a tower's layers: the slots that are edited by default, those of the later half, none."""

    def choices(model: Model) -> tuple[str, ...]:
        towers = [tower.name for tower in model.layout.towers if tower.encoder.modality == modality]
        late = [f"{tower}.[{model.depth(tower) // 2}-{model.depth(tower) - 1}].{default}" for tower in towers]
        other = {"out_proj": "fc2", "fc2": "out_proj"}[default]
        return (default, other, *([",".join(late)] if late else []), "none")

    return choices


@dataclass(frozen=True)
class EntrySettings:
    """Settings of every entry editor; None for the editor's own."""

    variant: str | None = setting(
        None, str, "Of uwm's score  [default: ratio, the paper's]", VARIANTS, (None, *VARIANTS[1:-1])
    )
    text_layers: str = setting(
        TEXT_LAYERS,
        str,
        f"Weights by slot, glob or name; none for none  [default: {TEXT_LAYERS}]",
        search=_layers("text", TEXT_LAYERS),
    )
    vision_layers: str = setting(
        VISION_LAYERS, str, f"Likewise  [default: {VISION_LAYERS}]", search=_layers("vision", VISION_LAYERS)
    )
    mass: float | None = setting(
        None,
        float,
        "τ: share of the score mass to edit  [default: the method's]",
        search=Range(0.002, 0.4, log=True, start=0.05),
    )
    text_mass: float | None = setting(None, float, "τ of the text tower.")
    vision_mass: float | None = setting(None, float, "τ of the vision tower.")
    alpha: float | None = setting(
        None, float, "Factor of the chosen entries  [default: the method's]", search=(None, 0.0)
    )
    rule: str | None = setting(None, str, "τ is a share of the scores' sum or of the entries.", RULES)


@dataclass(frozen=True)
class EntryEditor:
    """How weights are scored, and the paper's settings for choosing and editing entries.

    Attributes:
        name, title, source: As in `uwm.editing.editors.Editor`.
        mass: τ.
        alpha: What chosen entries are multiplied by.
        rules: Tower -> rule of `uwm.editing.entries.selection`.
        variants: Of the scorer, its default first.
        scorer: Gives the class that is made once a weight, of its name, its values and the variant if there are any. It
            has ``update(safe, unsafe)`` for token statistics of a batch, ``scores()`` [out, in], and ``guards``, counts
            of neutral cases by name; or else
        loss: gives the loss that is differentiated on embeddings, the scores being the mean absolute gradient.
    """

    name: str
    title: str
    source: str
    mass: float
    alpha: float
    rules: dict[str, str] = field(default_factory=lambda: TOP_MASS)
    variants: tuple[str, ...] = ()
    scorer: Callable[[], type] | None = None
    loss: Callable[[], Loss] | None = None
    Settings: ClassVar[type] = EntrySettings

    def check(self, settings: EntrySettings) -> None:
        check_variant(self, settings.variant)
        for mass in (settings.mass, settings.text_mass, settings.vision_mass):
            if mass is not None and not 0 < mass < 1:
                raise BadInput(f"--mass {mass}: expected a number between 0 and 1, such as 0.02")
        check_choice(settings.alpha, settings.rule)

    def measured(self, settings: EntrySettings) -> Any:
        return self.name, settings.variant, settings.text_layers, settings.vision_layers

    def statistics(self, model: Model, pairs: Pairs, settings: EntrySettings) -> EntryStatistics:
        chosen = choose(model, pairs.modalities, settings)
        if not chosen:
            raise BadInput("no weight is chosen: both towers are 'none' or the set has no pairs for them")
        return EntryStatistics.of(self, model, chosen, settings.variant)

    def edit(self, model: Model, statistics: EntryStatistics, settings: EntrySettings, seed: int = 0) -> Proposal:
        from .select import changes_of

        changes, filled = changes_of(statistics.scores(model), self, settings)
        notes = {name: {"neutral": statistics.neutral(name)} for name in changes}
        return Proposal(dict(changes), notes, filled)

    def control(self, model: Model, statistics: EntryStatistics, settings: EntrySettings, seed: int = 0) -> Proposal:
        from ..editors import random_control

        proposal = self.edit(model, statistics, settings)
        shapes = {name: tuple(model.parameter(name).shape) for name in proposal.changes}
        return random_control(proposal, shapes, seed)


@dataclass
class EntryStatistics(Statistics):
    """Scores of the chosen weights in the making: by a pass that feeds scorers, or by gradients of a loss.

    Attributes:
        editor: Whose.
        chosen: The weights.
        gradients: Their sums, of the gradient baselines.
        found: Name -> scores, once fed, of the gradient baselines.
    """

    editor: EntryEditor = field(kw_only=True)
    chosen: list[WeightId] = field(kw_only=True)
    variant: str | None = field(default=None, kw_only=True)
    gradients: GradientSums | None = field(default=None, kw_only=True, repr=False)
    found: dict[WeightId, torch.Tensor] = field(default_factory=dict, kw_only=True)
    _scores: Scores | None = field(default=None, kw_only=True, repr=False)

    @classmethod
    def of(cls, editor: EntryEditor, model: Model, chosen: list[WeightId], variant: str | None) -> EntryStatistics:
        """Not fed yet."""
        from ...statistics.channel_norms import ChannelNorms
        from ...statistics.gradients import GradientSums

        towers, named = tuple(sorted({w.tower for w in chosen})), None if variant in editor.variants[:1] else variant
        reducers = {}
        if editor.scorer is not None:
            make, extra = editor.scorer(), (variant or editor.variants[0],) if editor.variants else ()
            reducers["scores"] = ChannelNorms({w: make(w, model.parameter(w), *extra) for w in chosen})
        sums = None if editor.loss is None else GradientSums(chosen)
        return cls(
            towers, reducers, joint=sums is not None, editor=editor, chosen=chosen, variant=named, gradients=sums
        )

    def feed(self, model: Model, batches: Iterable[PairBatch], also: Sequence[Any] = ()) -> None:
        """As `Statistics.feed`; the gradient baselines make a pass of their own, which feeds nobody else."""
        if self.editor.loss is None:
            return super().feed(model, batches, also)
        from ...statistics.gradients import gradients

        assert self.gradients is not None
        gradients(model, batches, self.gradients, self.editor.loss())
        self.pairs = {weight.tower: self.gradients.pairs for weight in self.chosen}
        self.found = {weight: found.float() for weight, found in self.gradients.means().items()}

    def summed(self) -> list[Any]:
        """As `Statistics.summed`."""
        return super().summed() if self.gradients is None else [self.gradients]

    def neutral(self, name: WeightId) -> dict[str, int]:
        """Counts of the cases that the score leaves neutral."""
        return {} if name in self.found else self.reducers["scores"].scorers[name].guards

    def scores(self, model: Model, fingerprint: str | None = None) -> Scores:
        """What was found, with what it was made from; `fingerprint` is the calibration set's."""
        from .scores import Scores

        if self._scores is None:
            scorers = {} if self.found else self.reducers["scores"].scorers
            tensors = self.found or {name: scorers[name].scores() for name in self.chosen}
            recipe: dict[str, Any] = {"method": self.editor.name}
            recipe |= {} if self.variant is None else {"variant": self.variant}
            base = {weight: model.fingerprint(weight) for weight in self.chosen}
            casts = {weight: model.casts(weight) for weight in self.chosen}
            self._scores = Scores(tensors, base, recipe, {w: self.neutral(w) for w in self.chosen}, casts)
            self._scores.check()
            if model.checkpoint is not None:
                model.checkpoint.demand_unchanged()
        known = {} if fingerprint is None else {"calibration": fingerprint}
        return replace(self._scores, recipe={**self._scores.recipe, **known, "pairs": self.pairs})


def choose(model: Model, available: tuple[str, ...], settings: EntrySettings) -> list[WeightId]:
    """The weights that the settings name, of towers that the set has pairs for.

    The defaults ask nothing of a tower that the model or the set does not have.

    Raises:
        BadInput: A pattern that matches nothing, or that asks for a tower without pairs.
    """
    chosen = []
    named = ((settings.text_layers, TEXT_LAYERS, "text"), (settings.vision_layers, VISION_LAYERS, "vision"))
    for patterns, default, modality in named:
        if modality not in model.editable and patterns == default:
            continue
        if modality in model.nameless and patterns != "none":
            raise BadInput(f"--{modality}-layers {patterns!r}: {model.lacks(modality)}")
        found = model.match(patterns, modality)
        if modality not in available:
            if patterns not in (default, "none"):
                what = "captions" if modality == "text" else "images"
                raise BadInput(f"--{modality}-layers {patterns!r}: the set has no {what} for the {modality} tower")
            continue
        chosen += found
    return chosen


def check_variant(editor: EntryEditor, variant: str | None) -> None:
    """Refuse a variant that an editor does not have. Raises BadInput."""
    if variant is not None and not editor.variants:
        raise BadInput(
            f"--variant {variant!r}: the method {editor.name} has no variants; leave it out, or use --method uwm"
        )
    if variant is not None and variant not in editor.variants:
        raise BadInput(f"--variant {variant!r}: expected one of {', '.join(editor.variants)}")


def check_choice(alpha: float | None, rule: str | None) -> None:
    """Refuse an α or a rule that cannot work. Raises BadInput; InvalidResult for an α that changes nothing."""
    if rule is not None and rule not in RULES:
        raise BadInput(f"--rule {rule!r}: expected one of {', '.join(RULES)}")
    if alpha is not None and (not math.isfinite(alpha) or abs(alpha) > 1e4):
        raise BadInput(f"--alpha {alpha}: expected a finite number such as -1")
    if alpha == 1:
        raise InvalidResult("--alpha 1 changes nothing")


def _uwm() -> type:
    from .uwm import UwmScorer

    return UwmScorer


def _log_ratio() -> type:
    from .log_ratio import LogRatioScorer

    return LogRatioScorer


def _grad_unsafe() -> Loss:
    from .gradients import grad_unsafe

    return grad_unsafe


def _grad_safe_clip() -> Loss:
    from .gradients import grad_safe_clip

    return grad_safe_clip


UWM = EntryEditor(
    "uwm", "Unsafe Weights Manipulation (UWM, WACV 2026)", "D'Incà et al., arXiv 2503.11742, WACV 2026, Eq. 8–11",
    mass=0.02, alpha=-1.0, variants=VARIANTS, scorer=_uwm,
)  # fmt: skip
LOG_RATIO = EntryEditor(
    "log-ratio", "the mean of log ratios of UWM's saliency", "after UWM, Eq. 10, with the geometric mean over pairs",
    mass=0.02, alpha=-1.0, scorer=_log_ratio,
)  # fmt: skip
# The two towers' rules differ in the authors' program; kept as it is there.
GRAD_UNSAFE = EntryEditor(
    "grad-unsafe", "the gradient baseline G-Unsafe (UWM, WACV 2026)", "arXiv 2503.11742, section 5",
    mass=0.035, alpha=0.0, rules={"text": "top-fraction", "vision": "top-mass"}, loss=_grad_unsafe,
)  # fmt: skip
GRAD_SAFE_CLIP = EntryEditor(
    "grad-safe-clip", "the gradient baseline G-Safe-CLIP (UWM, WACV 2026)", "arXiv 2503.11742, section 5",
    mass=0.005, alpha=0.0, rules=TOP_FRACTION, loss=_grad_safe_clip,
)  # fmt: skip
