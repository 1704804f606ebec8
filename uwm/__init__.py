"""uwm: training-free model editing that makes CLIP-like vision-language models safer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import UwmError
from .lazy import lazily
from .version import __version__

if TYPE_CHECKING:
    from . import knowledge, metrics
    from .calibration import CalibrationPair, CalibrationSet, read_calibration
    from .comparison import CompareRecipe, Comparison, compare
    from .editing.diff import diff
    from .editing.entries.scores import Scores
    from .editing.entries.scoring import score
    from .editing.entries.select import select
    from .editing.files import apply, revert
    from .editing.live import patched
    from .editing.patch import Patch
    from .evaluation import EvalResult, evaluate
    from .finetuning import FinetuneRecipe, finetune
    from .models import Model, load
    from .recipe import Recipe, run
    from .statistics.batches import PairBatch
    from .tuning.tune import Tuned, TuneRecipe, tune
    from .weights import WeightId
else:
    _PLACES = {
        "calibration": ("CalibrationPair", "CalibrationSet", "read_calibration"),
        "comparison": ("CompareRecipe", "Comparison", "compare"),
        "editing.diff": ("diff",),
        "editing.entries.scores": ("Scores",),
        "editing.entries.scoring": ("score",),
        "editing.entries.select": ("select",),
        "editing.files": ("apply", "revert"),
        "editing.live": ("patched",),
        "editing.patch": ("Patch",),
        "evaluation": ("EvalResult", "evaluate"),
        "finetuning": ("FinetuneRecipe", "finetune"),
        "knowledge": ("knowledge",),
        "metrics": ("metrics",),
        "models": ("Model", "load"),
        "recipe": ("Recipe", "run"),
        "statistics.batches": ("PairBatch",),
        "tuning.tune": ("TuneRecipe", "Tuned", "tune"),
        "weights": ("WeightId",),
    }
    __getattr__ = lazily(__name__, {name: place for place, names in _PLACES.items() for name in names})

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
    "TuneRecipe",
    "Tuned",
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
    "tune",
]


def __dir__() -> list[str]:
    return __all__
