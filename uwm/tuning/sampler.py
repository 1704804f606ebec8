"""Optuna's TPE where the settings are known beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler


class Sampler(TPESampler):
    """Draws all settings together (multivariate TPE), as Optuna does once it has found what all trials have in common.

    Optuna looks for that in every trial of a study, which takes longer the more there are; here all have the same.

    Args:
        seed: Of the draws.
        space: Setting -> what it is drawn from.
    """

    def __init__(self, seed: int, space: Mapping[str, BaseDistribution]) -> None:
        super().__init__(seed=seed, multivariate=True)
        self._space = {name: space[name] for name in sorted(space) if not space[name].single()}  # in Optuna's order

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
        """The same for every trial."""
        return self._space
