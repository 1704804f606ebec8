"""What will be measured, and so can be asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..errors import BadInput
from ..figures import PAIRED, PRESERVED
from .expression import ZERO_SHOT_FIGURES, Expression
from .requirement import Requirement


def check_known(
    asked: Iterable[Expression | Requirement],
    concepts: Sequence[str],
    data_sets: Sequence[str],
    flag: str,
    preserve: bool = False,
    paired: Sequence[str] = PAIRED,
) -> None:
    """Refuse figures, concepts and data sets that will not be measured. Raises BadInput.

    Args:
        asked: Parsed.
        concepts: Those of the set.
        data_sets: Names of the zero-shot data sets that will be measured.
        flag: Where they were given, for errors: ``--require``.
        preserve: Whether ``preserved`` will be measured.
        paired: The figures of pairs, or of what is measured instead of them.
    """
    known = (*paired, *(ZERO_SHOT_FIGURES if data_sets else ()), *([PRESERVED] if preserve else []))
    for one in asked:
        expression = one.expression if isinstance(one, Requirement) else one
        figure, said = expression.figure, f"{flag} {one.text!r}"
        if figure == PRESERVED and not preserve:
            raise BadInput(f"{said}: only --max-loss with --preserve SET measures {PRESERVED}")
        if figure in ZERO_SHOT_FIGURES and not data_sets:
            raise BadInput(f"{said}: {figure} is measured with --zero-shot DATASET only; give one")
        if figure not in known:
            raise BadInput(f"{said}: no figure {figure!r}; there are {', '.join(known)}")
        for what, name, there in (
            ("concept", expression.concept, () if figure == PRESERVED else concepts),
            ("data set", expression.data_set, data_sets),
        ):
            listed = [*there, "*"] if there else []
            if name and name not in listed:
                raise BadInput(f"{said}: no {what} {name!r}; there are {', '.join(listed) or 'none'}")
