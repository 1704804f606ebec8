"""uwm: training-free model editing that makes CLIP-like vision-language models safer."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .errors import UwmError
from .lazy import lazily
from .version import __version__
from .weights import WeightId

if TYPE_CHECKING:
    from . import knowledge, metrics
    from .calibration import CalibrationPair, CalibrationSet, read_calibration
    from .compare import CompareRecipe, Comparison, compare
    from .evaluate import EvalResult, evaluate
    from .finetune import FinetuneRecipe, finetune
    from .models import Model, load
    from .patch import patched, select
    from .patch_file import Patch
    from .profiler import PairBatch
    from .recipe import Recipe, run
    from .rewrite import apply, diff, revert
    from .scoring import Scores, score
else:
    _PLACES = {
        "calibration": ("CalibrationPair", "CalibrationSet", "read_calibration"),
        "compare": ("CompareRecipe", "Comparison", "compare"),
        "evaluate": ("EvalResult", "evaluate"),
        "finetune": ("FinetuneRecipe", "finetune"),
        "knowledge": ("knowledge",),
        "metrics": ("metrics",),
        "models": ("Model", "load"),
        "patch": ("patched", "select"),
        "patch_file": ("Patch",),
        "profiler": ("PairBatch",),
        "recipe": ("Recipe", "run"),
        "rewrite": ("apply", "diff", "revert"),
        "scoring": ("Scores", "score"),
    }
    __getattr__ = lazily(__name__, {name: place for place, names in _PLACES.items() for name in names})

    class _Package(ModuleType):
        """`compare`, `evaluate` and `finetune` are the functions, also when modules of these names are imported."""

        def __setattr__(self, name: str, value: Any) -> None:
            one = name in ("compare", "evaluate", "finetune") and isinstance(value, ModuleType)
            super().__setattr__(name, getattr(value, name) if one else value)

    sys.modules[__name__].__class__ = _Package

__all__ = [
    "CalibrationPair",
    "CalibrationSet",
    "CompareRecipe",
    "Comparison",
    "EvalResult",
    "FinetuneRecipe",
    "Model",
    "PairBatch",
    "Patch",
    "Recipe",
    "Scores",
    "UwmError",
    "WeightId",
    "__version__",
    "apply",
    "compare",
    "diff",
    "evaluate",
    "finetune",
    "knowledge",
    "load",
    "metrics",
    "patched",
    "read_calibration",
    "revert",
    "run",
    "score",
    "select",
]


def __dir__() -> list[str]:
    return __all__
