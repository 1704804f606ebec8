"""From a model and pairs to a patch: the pass that an editor asks for, and the patch that it proposes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from ..calibration import CalibrationPair, CalibrationSet, Preservation, demand_signal
from ..errors import BadInput, InvalidResult, NotFinite
from ..models import Model
from ..statistics.batches import BATCH_SIZE, Progress, count_batches, pair_batches, preserved_batches
from ..statistics.going_on import KeptPass
from ..statistics.passes import Reducer
from ..weights import WeightId
from .editors import Editor, Pairs, Proposal, Statistics
from .patch import Patch

Parts = Callable[[CalibrationSet, Statistics], Iterable[CalibrationSet]]


def about(calibration: CalibrationSet) -> Pairs:
    """What an editor is told of a set."""
    of = {
        "text": tuple(p.concept for p in calibration.pairs if p.has_text),
        "vision": tuple(p.concept for p in calibration.pairs if p.has_image),
    }
    return Pairs(tuple(modality for modality, concepts in of.items() if concepts), of)


def gather(
    model: Model,
    statistics: Statistics,
    calibration: CalibrationSet,
    *,
    batch_size: int = BATCH_SIZE,
    workers: int = 2,
    progress: Progress | None = None,
    also: Sequence[Reducer] = (),
    preserve: Preservation | None = None,
    parts: Parts | None = None,
) -> CalibrationSet:
    """Feed statistics, and the reducers of others, with the pairs of a set.

    Args:
        model: Unedited.
        statistics: From an editor.
        calibration: The pairs.
        batch_size, workers, progress: As in `uwm.score`.
        also: Further reducers of the same pass.
        preserve: Safe captions and images without partners.
        parts: Gives the pairs in parts, and may end before all were seen; see `stability`; None: all at once.

    Returns:
        The pairs that were fed, in their order.

    Raises:
        BadInput: A preservation set for an editor that has no use for one, or as `demand_signal` finds.
    """
    if preserve is not None and not statistics.preserve:
        raise BadInput("--preserve: this method does not use a preservation set; leave it out, or use --method repel")
    towers = sorted({tower.partition("_")[0] for tower in statistics.towers})
    joint = statistics.joint
    demand_signal(model, calibration, towers)
    passed: dict[str, Any] = {"batch_size": batch_size, "towers": towers, "workers": workers}
    if preserve is not None:
        kept = KeptPass(model, "preserved", [*statistics.preserve.values()])
        statistics.feed_preserved(model, kept.over(preserved_batches(model, preserve, done=kept.done, **passed)))
        kept.end()
    fed: list[CalibrationPair] = []
    for part in [calibration] if parts is None else parts(calibration, statistics):
        kept = KeptPass(model, [pair.id for pair in part.pairs], [*statistics.summed(), *also])
        batches: Iterable = kept.over(pair_batches(model, part, joint=joint, done=kept.done, **passed))
        if progress is not None:
            batches = progress(batches, count_batches(part, batch_size, ["text"] if joint else towers), "profile")
        with _named_by_id(part, joint):
            statistics.feed(model, batches, also)
        kept.end()
        fed += part.pairs
    return replace(calibration, pairs=tuple(fed))


@contextmanager
def _named_by_id(fed: CalibrationSet, joint: bool) -> Iterator[None]:
    """Say a pair's id where the pass, which sees tensors only, says its number."""
    try:
        yield
    except NotFinite as error:
        text = not error.tower.startswith("vision")
        pairs = [p for p in fed.pairs if (p.has_text and p.has_image if joint else p.has_text if text else p.has_image)]
        raise InvalidResult(f"{error.what} at pair {pairs[error.number].id!r}") from None


def check_proposal(model: Model, proposal: Proposal) -> dict[WeightId, tuple[int, ...]]:
    """Refuse a proposal that an unedited model cannot take; return the shape of every tensor that it changes.

    Raises:
        InvalidResult: Nothing would change, or a change does not fit its tensor or is not finite.
        BadInput: A change is of a tensor that was interpolated when the model was loaded.
    """
    if not proposal.changes:
        raise InvalidResult("the edit changes nothing")
    shapes = {name: tuple(model.parameter(name).shape) for name in sorted(proposal.changes)}
    for name in model.reshaped:
        if name in shapes:
            raise BadInput(
                f"{name}: the model computes with {list(shapes[name])}, interpolated from what is stored, so it cannot "
                "be edited; leave it out"
            )
    for name, shape in shapes.items():
        if not proposal.changes[name].fits(shape):
            raise InvalidResult(f"{name}: the proposed change does not fit a tensor of {list(shape)}, or is not finite")
    return shapes


def recipe_of(
    editor: Editor, chosen: Any, statistics: Statistics, proposal: Proposal, calibration: str, seed: int
) -> dict[str, Any]:
    """What a patch says of how it came about.

    Args:
        editor, chosen, statistics, proposal: The editor, its settings, and what it made of fed statistics.
        calibration: The set's fingerprint.
        seed: Of the draws.
    """
    about: dict[str, Any] = {"method": editor.name}
    variant = getattr(statistics, "variant", None)
    about |= {} if variant is None else {"variant": variant}
    about |= {"calibration": calibration, "pairs": statistics.pairs}
    return about | ({} if proposal.settings else {"settings": asdict(chosen), "seed": seed})


def make_patch(model: Model, proposal: Proposal, recipe: Mapping[str, Any]) -> Patch:
    """A patch of what an editor proposes for an unedited model.

    Raises:
        UwmError: As `check_proposal`, and ResourceFault where the model's files changed since it was loaded.
    """
    shapes = check_proposal(model, proposal)
    made = Patch(
        {name: proposal.changes[name] for name in shapes},
        shapes=shapes,
        base={name: model.fingerprint(name) for name in shapes},
        recipe={**recipe, **proposal.settings},
        casts={name: model.casts(name) for name in shapes},
    )
    if model.checkpoint is not None:
        model.checkpoint.demand_unchanged()
    return made
