"""uwm: training-free model editing that makes CLIP-like vision-language models safer."""

from __future__ import annotations

from . import knowledge, metrics
from .calibration import CalibrationPair, CalibrationSet, read_calibration
from .compare import CompareRecipe, Comparison, compare
from .errors import UwmError
from .evaluate import EvalResult, evaluate
from .finetune import FinetuneRecipe, finetune
from .models import Model, load
from .patch import Patch, patched, select
from .profiler import PairBatch
from .recipe import Recipe, run
from .rewrite import apply, diff, revert
from .scoring import Scores, score
from .version import __version__
from .weights import WeightId

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
