"""One small language on figures, for requirements, budgets of loss and objectives. No torch.

::

    EXPRESSION   FIGURE[.low|.high][@CONCEPT|@*|:DATASET|:*]
    REQUIREMENT  EXPRESSION>=NUMBER[%|pt], or with <=, > or <; R1 stands for both directions
    BUDGET       LOSS, EXPRESSION=LOSS, or a REQUIREMENT with a unit; with commas between
    LOSS         NUMBER% (of the baseline's value) or NUMBERpt (points)
"""

from .expression import Expression, Measured, NothingToCompare
from .known import check_known
from .parsing import parse_max_loss, parse_objective, parse_requirements
from .requirement import Changes, Requirement, Verdict

__all__ = [
    "Changes",
    "Expression",
    "Measured",
    "NothingToCompare",
    "Requirement",
    "Verdict",
    "check_known",
    "parse_max_loss",
    "parse_objective",
    "parse_requirements",
]
