"""Selection by Python loops over exact fractions, and by a full sort in float64: the yardsticks for selection.py."""

from __future__ import annotations

from fractions import Fraction


def slow_top_mass(scores, mass):
    """Flat indices of what lies beyond a share 1 − mass of the total, in ascending order of score (UWM, Eq. 11)."""
    values = [Fraction(value) for row in scores.tolist() for value in row]
    total, running, chosen = sum(values), Fraction(0), []
    for index in sorted(range(len(values)), key=lambda i: (values[i], i)):
        running += values[index]
        if running / total > 1 - Fraction(mass):
            chosen.append(index)
    return sorted(chosen)


def slow_top_fraction(scores, kept_out):
    """Flat indices of the scores above the `kept_out`-th smallest."""
    values = [value for row in scores.tolist() for value in row]
    threshold = sorted(values)[kept_out - 1]
    return [index for index, value in enumerate(values) if value > threshold]


def sorted_top_mass(scores, mass):
    """Top mass as it is defined in float64: a stable sort, and what lies beyond a cumulative sum of 1 − mass."""
    flat = scores.double().flatten()
    order = flat.argsort(stable=True)
    cumulative = (flat[order] / flat.sum()).cumsum(0)
    return order[cumulative > 1 - mass].sort().values
