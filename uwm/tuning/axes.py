"""What both charts of a front show, and where: the axis of loss, its ticks, and the window; no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .front import Front
from .points import loss_of, objective_of

STRETCH = 2.0  # up to about this loss the axis is linear, beyond it logarithmic: most budgets are small
GAP = 0.07  # of an axis: the least distance of two ticks
SIZES = tuple(m * 10.0**power for power in (2, 1, 0, -1, -2) for m in (1, 5, 2))  # of ticks, the roundest first
Place = tuple[float, float]  # loss, objective


def stretched(loss: float) -> float:
    """Where a loss lies on its axis."""
    return math.asinh(loss / STRETCH)


def unstretched(place: float) -> float:
    """The loss that lies at a place of the axis."""
    return STRETCH * math.sinh(place)


def loss_ticks(least: float, most: float) -> list[float]:
    """Round losses from `least` to `most` that are far enough from each other on the axis, ascending."""
    width = stretched(most) - stretched(least)
    kept: list[float] = []
    for tick in (0.0, *(sign * size for size in SIZES for sign in (1, -1))):
        free = all(abs(stretched(tick) - stretched(other)) >= GAP * width for other in kept)
        if least <= tick <= most and free:
            kept.append(tick)
    return sorted(kept)


def of_points(front: Front) -> list[Place]:
    """The points as cross-validation sees them."""
    return [(point["loss"], point["objective"]) for point in front["points"]]


def held_out(front: Front, name: str) -> list[Place | None]:
    """The same points on a held-out set; None where one has no objective or no loss."""
    before = front["baseline"]["held_out"][name]
    results = [point["held_out"][name] for point in front["points"]]
    found = [(loss_of(front, result, before), objective_of(front, result)) for result in results]
    return [None if loss is None or objective is None else (loss, objective) for loss, objective in found]


def unedited(front: Front) -> list[Place]:
    """The unedited model, if it has an objective."""
    objective = objective_of(front, front["baseline"]["cross_validated"])
    return [] if objective is None else [(0.0, objective)]


def window(front: Front) -> tuple[tuple[float, float], tuple[float, float]]:
    """The losses and the objectives that a chart shows, lowest and highest.

    All points, on every set, the unedited model, and the trials that lose no more than these: what a search destroyed
    would leave no room for them.
    """
    places = [*of_points(front), *unedited(front)]
    places += [place for name in front["baseline"]["held_out"] for place in held_out(front, name) if place]
    most = max(loss for loss, _ in places)
    places += [(trial["loss"], trial["objective"]) for trial in front["tried"] if trial["loss"] <= most]
    losses, objectives = _span([loss for loss, _ in places]), _span([objective for _, objective in places])
    return losses, objectives


def _span(values: Sequence[float]) -> Place:
    """Lowest and highest, never equal."""
    low, high = min(values), max(values)
    return low, max(high, low + 0.1)


def beyond(front: Front, most: float) -> str:
    """What a chart up to a loss does not show, for its axis; empty if it shows all."""
    outside = sum(trial["loss"] > most for trial in front["tried"])
    return f"; not shown: {outside} of {len(front['tried'])} trials, which lose more" if outside else ""


def methods_of(front: Front) -> list[str]:
    """All methods, in the order of their colours."""
    return [*dict.fromkeys([*front["trials"]["by_method"], *(trial["method"] for trial in front["tried"])])]
