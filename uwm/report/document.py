"""What the page is made of, as plain data: the content of ``uwm.json``, or its like for `uwm eval`."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..calibration import CalibrationSet
from ..evaluation import EvalResult, differences
from ..expressions import Verdict
from ..manifest import Manifest
from ..version import __version__
from .verdict import verdict_facts

EVAL_SETTINGS = (
    "arch",
    "quick_gelu",
    "preprocess",
    "device",
    "dtype",
    "revision",
    "split",
    "budget",
    "seed",
    "ensemble",
    "batch_size",
)


def versions() -> dict[str, str]:
    """Of what decides the figures."""
    import torch

    libraries = {name: version(name) for name in ("transformers", "open_clip_torch", "numpy")}
    return {"uwm": __version__, "torch": torch.__version__, **libraries, "python": platform.python_version()}


def paired_differences(columns: Mapping[str, EvalResult], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Every column against the first, and the second, which is judged, also against those after it.

    Args:
        columns: Column -> result, all of the same pairs.
        seed: For the bootstrap.

    Returns:
        Column -> against which column -> `uwm.evaluation.differences`.
    """
    first, *rest = columns
    against = {name: [first, *(rest[1:] if name == rest[0] else [])] for name in rest}
    return {
        name: {other: differences(columns[name], columns[other], seed) for other in others}
        for name, others in against.items()
    }


def evaluation_document(
    pairs: CalibrationSet, results: Mapping[str, EvalResult], verdicts: Sequence[Verdict], settings: Mapping[str, Any]
) -> Manifest:
    """The page's content for `uwm eval`, without local paths.

    Args:
        pairs: What was measured on.
        results: ``baseline``, where there is one, and ``model``.
        verdicts: On the requirements.
        settings: The flags by name; ``model``, ``baseline`` and ``zero_shot`` are references.
    """
    names = {key: _name(settings[key]) for key in ("model", "baseline") if settings[key]}
    name = pairs.name + (f", {settings['split']}" if settings["split"] else "")
    columns = {name: {column: result.as_dict() for column, result in results.items()}}
    differences = {name: paired_differences(results, settings["seed"])}
    verdict = verdict_facts(columns, differences)
    assert verdict is not None
    return {
        "model": {"name": names["model"]},
        "baseline": names.get("baseline"),
        "settings": {
            **names,
            "pairs": pairs.name,
            "zero_shot": [_name(reference) for reference in settings["zero_shot"]],
            **{key: settings[key] for key in EVAL_SETTINGS if key in settings},
            **({"preprocess": _name(settings["preprocess"])} if settings.get("preprocess") else {}),
        },
        "versions": versions(),
        "pairs_sha256": pairs.fingerprint(),
        "results": columns,
        "differences": differences,
        "verdict": verdict,
        "requirements": [asdict(verdict) | {"text": str(verdict)} for verdict in verdicts],
    }


def _name(reference: str) -> str:
    """A reference without its folder; the Hub's names stay whole."""
    return Path(reference).resolve().name if Path(reference).exists() else reference
