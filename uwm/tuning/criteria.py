"""What a search looks for, and what counts as a loss."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ..errors import InvalidResult
from ..evaluation import EvalResult, differences
from ..expressions import Expression, Requirement
from ..figures import label


@dataclass(frozen=True)
class Criteria:
    """What a search looks for.

    Attributes:
        objective: The figure that is to be good.
        terms: Changes that cost: how far each falls beyond its bound.
        limited: A candidate that falls beyond a bound is out; without, all trade-offs are looked for.
    """

    objective: Expression
    terms: tuple[Requirement, ...]
    limited: bool

    def of(self, result: EvalResult, baseline: EvalResult) -> tuple[float, float]:
        """The objective in percent, and the loss: how far the worst term lies beyond its bound (below 0: within).

        Raises:
            InvalidResult: A figure does not exist, or is no number.
        """
        bounded = any(term.expression.bound != "mean" for term in self.terms)
        changes = differences(result, baseline) if bounded else None
        verdicts = [term.check(result, baseline, changes) for term in self.terms]
        for verdict in verdicts:
            if verdict.margin is None:
                raise InvalidResult(f"{verdict.requirement}: {verdict.note}")
        value = self.objective.value(result)
        loss = max((-verdict.margin for verdict in verdicts if verdict.margin is not None), default=0.0)
        if math.isnan(value) or math.isnan(loss):
            raise InvalidResult("a figure is not a number")
        return value, loss + 0.0  # no −0

    def loss_of_data_sets(self, result: EvalResult, baseline: EvalResult) -> float:
        """The loss, as in `of`, of the terms that are figures of data sets; −∞ without such."""
        terms = [term for term in self.terms if not term.expression.of_pairs]
        margins = [term.check(result, baseline, None).margin for term in terms]
        return max((-margin for margin in margins if margin is not None), default=-math.inf)

    def better(self, value: float) -> float:
        """The objective, higher being better."""
        return -value if self.lower_is_better else value

    @property
    def detailed(self) -> bool:
        """Whether it needs more than means, recall at 1 and figures of the whole set."""
        needed = [self.objective, *(term.expression for term in self.terms)]
        return any(one.bound != "mean" or one.concept or re.match(r"R(?!1_)\d", one.figure) for one in needed)

    @property
    def label(self) -> str:
        """What reports call the objective."""
        return self.objective.text if self.objective.text != self.objective.figure else label(self.objective.figure)

    @property
    def lower_is_better(self) -> bool:
        """Whether less of the objective is better."""
        return self.objective.lower_is_better
